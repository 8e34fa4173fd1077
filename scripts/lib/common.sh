# shellcheck shell=bash
# What the scripts share: messages, and installing what is missing. To be sourced; sets `root` to the checkout.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# a proxy can't reach this machine's own loopback
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
export NO_PROXY=$no_proxy

# Nix that was installed by its own installer isn't always on PATH, nor is Rust right after rustup.
for dir in "$HOME/.cargo/bin" "$HOME/.nix-profile/bin" /nix/var/nix/profiles/default/bin; do
    if [[ -d $dir && :$PATH: != *:$dir:* ]]; then PATH=$PATH:$dir; fi
done
export PATH
unset dir

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The comment at a script's beginning is its help.
help_of() { sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p}' "$1"; }

as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; as root, run: $*"
    fi
}

# install_missing COMMAND:PACKAGES… installs the packages of those commands that aren't there.
install_missing() {
    local pair more missing=() packages=()
    for pair in "$@"; do
        # not `command -v`: it takes what the shell itself can do for a program
        type -P "${pair%%:*}" >/dev/null && continue
        missing+=("${pair%%:*}")
        read -ra more <<<"${pair#*:}"
        packages+=("${more[@]}")
    done
    if [[ ${#missing[@]} -eq 0 ]]; then return; fi
    say "missing here: ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        die "this machine has no apt-get; install ${missing[*]} in its own way and run this again"
    fi
    say "installing with apt-get: ${packages[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    # an old list is better than none: whether it is good enough, the installation tells
    as_root "${apt[@]}" update >&2 || warn "apt-get update failed; going on with the lists that are here"
    as_root "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >&2 ||
        die "apt-get can't install ${packages[*]}; see its words above"
    hash -r
    for pair in "${missing[@]}"; do
        type -P "$pair" >/dev/null || die "$pair is still missing after installing ${packages[*]}"
    done
}

# Rust is not installed for the user: which one, and how, is the user's choice.
require_rust() {
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    command -v cargo >/dev/null ||
        die "no cargo found; install Rust $want or newer (https://rustup.rs) and run this again"
    # in the checkout, so that rustup takes the toolchain that it would build with
    have=$(cd "$root" && rustc --version | sed 's/^rustc \([0-9.]*\).*/\1/')
    if [[ $(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1) != "$want" ]]; then
        die "Rust $have is too old, $want or newer is needed (with rustup: rustup update stable)"
    fi
}

# Where cargo puts what it builds, whatever the environment and the user's settings say.
target_dir() {
    cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# Removes directories that may hold Nix stores: their files and directories are read-only.
remove_tree() {
    local dir
    for dir in "$@"; do
        [[ -e $dir ]] || continue
        find "$dir" -type d ! -perm -u+w -exec chmod u+w {} +
        rm -rf "$dir"
    done
}
