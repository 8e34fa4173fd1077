# Derivations that take no time: what is measured is all the rest. `stamp` makes those of each run new.
{ busybox, stamp, count }:
let
  toolset = import ../../tests/toolset { inherit busybox; };
  one = number: toolset.run "trivial-${toString number}" "echo ${stamp} ${toString number} > $out" { };
in
{
  inherit (toolset) tools;
  all = builtins.genList one count;
}
