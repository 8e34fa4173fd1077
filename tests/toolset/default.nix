# A small stand-in for stdenv: busybox as a source, a toolset built from it, and a function that builds with it.
#
# `busybox` is a statically linked busybox on this machine. Nothing else of the machine is used, so that what is built here
# builds anywhere in a sandbox without a network.
{ busybox, system ? builtins.currentSystem }:
let
  # an applet is chosen by the name that busybox is called by
  source = builtins.path { name = "busybox"; path = busybox; };
in
rec {
  # `name` from a shell script that has the tools on its PATH; `more` goes into the environment
  run = name: script: more: derivation ({
    inherit name system;
    builder = "${tools}/bin/sh";
    PATH = "${tools}/bin";
    args = [ "-euc" script ];
  } // more);

  # built, so that whoever builds with it has an input that was built too
  tools = derivation {
    name = "tools";
    inherit system;
    builder = source + "/bin/sh";
    args = [ "-euc" ''
      ${source}/bin/mkdir -p $out/bin
      ${source}/bin/cp ${source}/bin/busybox $out/bin/busybox
      for applet in ash awk cat chmod cp cut date dd echo env expr find grep head kill ln ls md5sum mkdir mv od ping printf \
        ps rm sed seq sh sha256sum sleep sort stat tail tar tee test touch tr true uname wc wget which yes; do
        ${source}/bin/ln -s busybox $out/bin/$applet
      done
    '' ];
  };
}
