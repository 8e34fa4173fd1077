# The benchmark's corpus: 1,000 small store paths (4 to 24 KB, about two references each, every third refers to itself),
# 50 medium (1.5 to 5 MB), 3 large (216, 304 and 392 MB), and 16 to be sent at once (500 MB).
# Each set is a list of its paths, which also keeps them from being collected; `all` lists the first three.
{ python }:
let
  mod = a: b: a - (a / b) * b;
  digits = width: n:
    let text = toString n;
    in builtins.substring 0 (width - builtins.stringLength text) "0000" + text;

  run = script: name: arguments: environment:
    derivation ({
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" ''exec "$0" "$@"'' python "-I" "-S" script ] ++ arguments;
    } // environment);
  make = run ./generate.py;
  path = kind: version: width: index: bytes: deps: self:
    make "${kind}-${digits width index}-${version}" [ kind (toString index) (toString bytes) ] { inherit deps self; };

  # attribute names are sorted and distinct, which a list of dependencies has to be too
  distinct = numbers:
    builtins.attrNames (builtins.listToAttrs (map (n: { name = digits 4 n; value = null; }) numbers));

  # up to 4 of the earlier ones, here and there
  smallDeps = i:
    if i < 10 then [ ]
    else map (name: smallByName.${name})
      (distinct (map (k: mod (i * (7919 + 104729 * k) + 31 * k) i) (builtins.genList (k: k) (mod i 5))));
  smallByName = builtins.listToAttrs (builtins.genList
    (i: {
      name = digits 4 i;
      value = path "small" "1.${toString (mod i 17)}" 4 i (4000 + mod (i * 7919) 13000 + mod (i * 31) 7 * 1000)
        (smallDeps i) (mod i 3 == 0);
    }) 1000);
  small = builtins.attrValues smallByName;

  medium = builtins.genList
    (i: path "medium" "2.${toString (mod i 7)}" 2 i (1500000 + mod (i * 1299709) 3500000)
      (if i < 3 then [ ]
       else map (name: builtins.elemAt medium (mod (i * 31 + name * 17) i)) (builtins.genList (k: k) (mod i 2 + 1)))
      (mod i 3 == 0)) 50;

  large = builtins.genList
    (i: path "large" "3.0" 1 i (builtins.elemAt [ 304000000 216000000 392000000 ] i)
      (if i == 0 then [ ] else [ (builtins.elemAt large (i - 1)) ]) false) 3;

  uploads = builtins.genList
    (i: run ./upload.py "upload-${digits 2 i}-4.0" [ (toString i) "500000000" ] { }) 16;

  set = name: deps: make name [ "list" ] { inherit deps; passAsFile = [ "deps" ]; };
in
{
  small = set "bench-small" small;
  medium = set "bench-medium" medium;
  large = set "bench-large" large;
  uploads = set "bench-uploads" uploads;
  all = set "bench-all" (small ++ medium ++ large);
}
