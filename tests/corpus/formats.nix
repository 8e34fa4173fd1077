# Derivations of every kind, small enough to build in seconds with nothing but /bin/sh.
#   built:         realised, their outputs are compared too
#   instantiated:  only the .drv files: their sources don't exist
#   floating:      content-addressed after the build (experimental feature ca-derivations)
#   impure:        (experimental feature impure-derivations, not in every Nix)
let
  system = builtins.currentSystem;

  drv =
    name: script: attrs:
    derivation (
      {
        inherit name system;
        builder = "/bin/sh";
        args = [
          "-c"
          script
        ];
        PATH = "/bin:/usr/bin";
      }
      // attrs
    );

  # what every fixed output holds, by mode
  flatScript = "printf 'flat contents\\n' > $out";
  treeScript = "mkdir -p $out/sub; printf 'in a tree\\n' > $out/sub/file";
  hashes = {
    flat = {
      md5 = "37rhpbw4dj76d9nvjddn20l49p";
      sha1 = "gh9kmhb6z11fa7yvyq72cx00xfp069lc";
      sha256 = "0z9cwck5vfw1mxqddd03f85zjdccbs5c6by8d32bywhf11mjkp5c";
      sha512 = "1lrydmqqb43bq21dg5kwv98znrm3vfsj58qsblmw9amayzgih7bpl0v0pm8ais20rzx36p5sf4v5da22dyc1yhn5wcdgyczckx1ks2r";
    };
    recursive = {
      md5 = "3rll44syian45swc4bhm3bzw6x";
      sha1 = "2na40rahh2jghcs62dydv58rbbslyfg0";
      sha256 = "0gv9l7n0dkwslndnyx8rqnjf2kfphxmdj0dch9qp7fik396ik9nq";
      sha512 = "0m7zkgnrm3wn4lv2qmblirh16irf3vlnnxlwchl0qbnikdhpvj0d40j11k00gw5ns2y1jh93kp6w3c9x1c3s85rj29zv4khznjv1kx8";
    };
  };
  fixed =
    mode: algo: name: attrs:
    drv name (if mode == "flat" then flatScript else treeScript) (
      {
        outputHashMode = mode;
        outputHashAlgo = algo;
        outputHash = hashes.${mode}.${algo};
      }
      // attrs
    );
  url = host: fixed "flat" "sha256" "source.txt" { url = "https://${host}/source.txt"; };

  toText = builtins.toFile "plain.txt" "no references\n";
  textWithRefs = builtins.toFile "refs.txt" "see ${toText} and ${textAlone}\n";
  textAlone = builtins.toFile "alone.txt" "quotes \" backslash \\ tab \t end";

  multi = drv "multi" "for o in $outputs; do eval p=\\$$o; mkdir $p; echo $o > $p/name; done" {
    outputs = [
      "out"
      "dev"
      "lib"
      "doc_2"
    ];
  };

  # Two derivations that differ in how one and the same source is fetched share a hash modulo.
  twin =
    host:
    drv "twin" "echo ${url host} > $out; echo dev > $dev; echo lib > $lib" {
      outputs = [
        "out"
        "dev"
        "lib"
      ];
    };

  chain =
    n:
    builtins.foldl' (
      below: i:
      drv "link-${toString i}" "echo ${toString i} > $out; if [ -f $below ]; then cat $below >> $out; fi" { inherit below; }
    ) multi (builtins.genList (i: i) n);

  ca =
    name: script: attrs:
    drv name script (
      {
        __contentAddressed = true;
        outputHashMode = "recursive";
        outputHashAlgo = "sha256";
      }
      // attrs
    );
  caPlain = ca "ca-plain" "echo plain > $out" { };
  caSelf = ca "ca-self" "mkdir $out; echo $out $out > $out/twice; ln -s $out/twice $out/link" { };
in
{
  # Built before the rest: Nix waits seconds for the lock where several derivations with the same outputs are due at once.
  first = twin "a.example";

  built =
    {
      inherit multi;
      simple = drv "simple" "echo hello > $out" { };
      versioned = drv "pkg-1.2.3+x_y?=z" "echo hello > $out" { };
      directory = drv "directory" "mkdir -p $out/a/b; echo x > $out/a/b/c; ln -s a/b $out/link; chmod +x $out/a/b/c" { };
      executable = drv "executable" "echo '#!/bin/sh' > $out; chmod +x $out" { };
      symlink = drv "symlink" "ln -s ${toText} $out" { };
      self = drv "self" "echo $out > $out" { };
      selfMany = drv "self-many" "mkdir $out; i=0; while [ $i -lt 50 ]; do echo $out $i; i=$((i+1)); done > $out/many" { };
      escapes = drv "escapes" "echo escapes > $out" {
        newline = "a\nb\r\nc";
        tab = "\ta\t";
        quote = "say \"hi\"";
        backslash = "\\ \\n \\\\";
        unicode = "Grüße, 世界 🦀";
        dollar = "$out \${x}";
        aterm = "\"),(\"x\",\"";
        "odd key" = "1";
        "key\"quote" = "2";
        empty = "";
      };
      argsEscaped = derivation {
        name = "args-escaped";
        inherit system;
        builder = "/bin/sh";
        args = [
          "-c"
          "echo \"$1\" > $out\n# \ttab \\ é"
          "zero"
          ""
          "one\"two"
        ];
        PATH = "/bin:/usr/bin";
      };
      numbers = drv "numbers" "echo $i $yes $no > $out" {
        i = 42;
        yes = true;
        no = false;
        nothing = null;
        list = [
          1
          "two"
          3
        ];
      };
      chain = chain 36;
      wantsAll = drv "wants-all" "cat ${multi}/name ${multi.dev}/name ${multi.lib}/name ${multi.doc_2}/name > $out" { };
      wantsDev = drv "wants-dev" "cat ${multi.dev}/name > $out" { };
      wantsPath = drv "wants-path" "echo ${multi.lib} > $out" { };
      onlyDev = drv "only-dev" "echo dev > $dev; echo bin > $bin" {
        outputs = [
          "dev"
          "bin"
        ];
      };
      crossOutputs = drv "cross-outputs" "echo $dev > $out; echo dev > $dev" {
        outputs = [
          "out"
          "dev"
        ];
      };
      useText = drv "use-text" "cat ${toText} ${textWithRefs} > $out" { };
      useSource = drv "use-source" "cp -r ${./.} $out" { };
      useFiltered = drv "use-filtered" "cp -r ${
        builtins.filterSource (path: _: baseNameOf path == "formats.nix") ./.
      } $out" { };
      usePath = drv "use-path" "cat ${
        builtins.path {
          path = ./formats.nix;
          name = "renamed.nix";
          recursive = false;
        }
      } > $out" { };
      usePathRecursive = drv "use-path-recursive" "cat ${
        builtins.path {
          path = ./formats.nix;
          name = "recursive.nix";
        }
      } > $out" { };
      passAsFile = drv "pass-as-file" "cat $longPath > $out" {
        long = "line\n\"quoted\"\n";
        passAsFile = [ "long" ];
      };
      allowed = drv "allowed" "echo ${multi} $out > $out" {
        allowedReferences = [
          multi
          "out"
        ];
        allowedRequisites = [
          multi
        ];
        disallowedReferences = [ toText ];
        disallowedRequisites = [ multi.dev ];
      };
      structured = drv "structured" ". ./.attrs.sh; out=\${outputs[out]}; dev=\${outputs[dev]}; echo \"$text\" > $out; echo dev > $dev" {
        builder = "/bin/bash";
        __structuredAttrs = true;
        outputs = [
          "out"
          "dev"
        ];
        text = "newline\n tab\t \"q\" \\ é";
        float = 1.5;
        nested.deep.er = [
          1
          2.25
          null
          true
          { x = "y"; }
        ];
        outputChecks = {
          out.allowedReferences = [ "dev" ];
          out.disallowedRequisites = [ multi ];
          dev.allowedReferences = [ ];
          dev.maxSize = 1000;
        };
        unsafeDiscardReferences.out = false;
      };
      shareSame = drv "share-same" "cat ${url "a.example"} ${url "b.example"} > $out" { };
      shareUnequal = drv "share-unequal" "cat ${twin "a.example"} ${(twin "b.example").dev} > $out" { };
      shareThree = drv "share-three" "cat ${(twin "a.example").lib} ${(twin "b.example").dev} ${twin "c.example"} > $out" { };
      aboveShare = drv "above-share" "cat ${drv "between" "cat ${(twin "b.example").lib} ${(twin "c.example").dev} > $out" { }} > $out" { };
      aboveFixed = drv "above-fixed" "cp -r ${fixed "recursive" "sha512" "f" { }} $out" { };
      unusualName = drv "..." "echo dots > $out" { };
      longName = drv (builtins.concatStringsSep "" (builtins.genList (_: "long-name-") 20)) "echo long > $out" { };
    }
    // builtins.listToAttrs (
      builtins.concatMap (
        mode:
        map (algo: {
          name = "fixed-${mode}-${algo}";
          value = fixed mode algo "fixed-${mode}-${algo}" { };
        }) (builtins.attrNames hashes.${mode})
      ) (builtins.attrNames hashes)
    );

  instantiated = {
    fetchurl = derivation {
      name = "fetched.tar.gz";
      system = "builtin";
      builder = "builtin:fetchurl";
      url = "https://example.org/fetched.tar.gz";
      urls = [
        "https://example.org/fetched.tar.gz"
        "https://mirror.example/fetched.tar.gz"
      ];
      outputHash = hashes.flat.sha256;
      outputHashAlgo = "sha256";
      outputHashMode = "flat";
    };
    sri = derivation {
      name = "sri";
      inherit system;
      builder = "/bin/sh";
      outputHash = "sha256-IlLUt4yU6Mes5OMxe3i9/mS8jjlwpk620vfCpEPAw/w=";
      outputHashMode = "recursive";
    };
    otherSystem = derivation {
      name = "other-system";
      system = "riscv64-linux";
      builder = multi;
    };
    oddOutputs = drv "odd-outputs" "" {
      outputs = [
        "out"
        "a-b"
        "1.2"
        "OUT"
        "x=y?"
      ];
    };
    structuredFixed = derivation {
      name = "structured-fixed";
      inherit system;
      builder = "/bin/sh";
      __structuredAttrs = true;
      urls = [ "https://example.org/x" ];
      outputHash = hashes.flat.sha512;
      outputHashAlgo = "sha512";
    };
    drvPath = drv "drv-path" "echo ${builtins.unsafeDiscardOutputDependency multi.drvPath} > $out" { };
    drvDeep = drv "drv-deep" "echo ${multi.drvPath} > $out" { };
    aboveFloating = drv "above-floating" "cat ${caPlain} > $out" { };
    aboveFloatingTwo = drv "above-floating-two" "cat ${drv "deferred" "cat ${caPlain} ${multi.dev} > $out" { }} > $out" { };
    fixedAboveFloating = fixed "flat" "sha256" "fixed-above-floating" { inherit caPlain; };
    aboveFixedAboveFloating = drv "above-fixed-above-floating" "cat ${
      fixed "flat" "sha256" "fixed-above-floating" { inherit caPlain; }
    } > $out" { };
  };

  floating = {
    inherit caPlain caSelf;
    caRefs = ca "ca-refs" "echo ${multi} ${toText} > $out" { };
    caSelfRefs = ca "ca-self-refs" "echo $out ${multi} $out > $out" { };
    caAbove = ca "ca-above" "echo $out ${caSelf} > $out" { };
    caMulti = ca "ca-multi" "echo $dev > $out; echo $dev > $dev" {
      outputs = [
        "out"
        "dev"
      ];
    };
    caFlat = ca "ca-flat" "echo flat > $out" { outputHashMode = "flat"; };
    caSha512 = ca "ca-sha512" "echo sha512 > $out" { outputHashAlgo = "sha512"; };
    caShare = ca "ca-share" "cat ${twin "a.example"} ${(twin "b.example").dev} > $out" { };
  };

  impure = {
    now = drv "now" "echo now > $out" { __impure = true; };
    aboveImpure = drv "above-impure" "cat ${drv "now" "echo now > $out" { __impure = true; }} > $out" { __impure = true; };
  };
}
