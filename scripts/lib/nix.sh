# shellcheck shell=bash
# Building with whatever Nix the machine has, without nixpkgs and without a network. To be sourced after common.sh.

# Root's Nix builds as other users, and nix-bin alone doesn't make them. Where there are none, it builds as root.
if [[ $(id -u) -eq 0 ]] && ! getent group nixbld >/dev/null; then
    export NIX_CONFIG="build-users-group =${NIX_CONFIG:+
$NIX_CONFIG}"
fi

# Options for every `nix-build` here; choose_store adds to them.
nix_options=(--option substitute false)
# The directory above the chosen store's nix/store; empty for /nix/store itself.
# shellcheck disable=SC2034  # read by who sources this
nix_root=""

# choose_store FALLBACK FILE ARGS…: finds out in which store this user can build, by building FILE with `nix-build ARGS`.
# Tries the machine's store first, then a store of its own in the directory FALLBACK, which needs no daemon and no root,
# but user namespaces. Sets NIX_REMOTE, nix_options and nix_root, and prints what it chose.
choose_store() {
    local fallback=$1 said_machine said_own dir paths=""
    shift
    # Without the sandbox, because distributions' Nix has no /bin/sh to put into it. A daemon that doesn't let this user
    # turn it off builds in a sandbox that has one.
    if said_machine=$(nix-build "$@" "${nix_options[@]}" --option sandbox false --no-out-link 2>&1); then
        nix_options+=(--option sandbox false)
        say "building in the machine's own Nix store"
        return
    fi
    # Such a store is always a sandbox; without the fallback Nix says so where it can't make one.
    for dir in /bin /lib /lib64 /usr; do
        if [[ -e $dir ]]; then paths+="$dir "; fi
    done
    nix_options+=(--option sandbox-paths "$paths" --option sandbox-fallback false)
    if said_own=$(NIX_REMOTE=$fallback nix-build "$@" "${nix_options[@]}" --no-out-link 2>&1); then
        # shellcheck disable=SC2034
        nix_root=$fallback
        export NIX_REMOTE=$fallback
        say "building in a Nix store of its own: $fallback"
        return
    fi
    printf '%s\n' "-- in the machine's store:" "$said_machine" "-- in $fallback:" "$said_own" >&2
    die "the Nix on this machine ($(nix --version)) can't build here; its words are above. Run this as root, or \
join the group that may talk to the Nix daemon (Debian: nix-users), or allow unprivileged user namespaces"
}
