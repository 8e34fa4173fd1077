# Three small store paths that refer to each other, built by nothing but a shell's own commands: no nixpkgs, no network.
# `stamp` makes the last of them new in every run.
{ stamp }:
let
  build = name: script: arguments:
    derivation ({
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" script ];
    } // arguments);

  words = builtins.toFile "words.txt" "Hello from a path that nobody had to be trusted for.\n";

  greeting = build "greeting-1.0" ''
    while IFS= read -r line; do echo "$line"; done < "$words" > "$out"
    echo "the words are from $words" >> "$out"
  '' { inherit words; };
in
build "hello-1.0" ''
  while IFS= read -r line; do echo "$line"; done < "$greeting" > "$out"
  echo "the greeting is from $greeting" >> "$out"
  echo "this is $out, made at $stamp" >> "$out"
'' { inherit greeting stamp; }
