//! The verifier as a program, with real Nix and real sandboxes, against a gateway that is played. As root, since builds
//! run as users of their own; a static busybox is the builder, so that nothing of this machine has to be seen inside.

mod attacks;
mod faults;
mod gateway;
mod honest;
mod store;
mod verifier;
