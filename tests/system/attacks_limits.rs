//! Whoever takes more than his share: places, room on the disk, time, connections, rows. Each limit refuses with its code,
//! leaves nothing behind, and lets in what keeps to it.
//!
//! | what a hostile submitter does | tests |
//! |---|---|
//! | many uploads never finished, quota passed | `uploads_that_never_end_fill_one_quota_and_are_swept`, `attacks_resources::the_quota_counts_what_is_kept` |
//! | fills the gateway's quarantine, or the disk | `gateway_full`, `disk_full`, `load::a_disk_that_runs_full` |
//! | 1,000 half-open uploads | `a_thousand_half_open_uploads` |
//! | one owner with many identities | `places_are_an_owners_and_some_are_for_newcomers` |
//! | slow bodies, long bodies | `upload_too_slow`, `upload_too_long` |
//! | memory: announcements, derivations, sessions | `gateway_busy`, `memory_that_runs_out_in_an_upload`; the whole process: `load::five_hundred_clients_at_once` |
//! | pushes that are never finished | `too_many_open_pushes`, `too_many_open_paths`, `announcements_count_in_the_quota` |
//! | connections that only look alive, answers that nobody takes | `a_connection_without_requests_is_closed_although_it_answers_pings`, `an_answer_that_nobody_takes_is_given_up` |
//! | rows that stay for ever | `ended_pushes_are_forgotten_and_evidence_stays`, `derivations_that_nobody_uses_are_forgotten` |
//! | the same NAR in parallel uploads | `a_nar_that_comes_twice_at_once_is_kept_once` |
//! | a large push in the judge's way | `a_large_push_does_not_hold_up_a_small_one`; a flood of pushes: `load::a_flood_does_not_starve_another` |
//! | two gateways on one store | not here: one gateway serves a data directory |

mod connections;
mod forgetting;
mod open;
mod room;
mod uploads;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use pushgate_formats::{
    StorePath,
    api::{Announced, PathState, frame},
};
use pushgate_gateway::{config::Config, identities::Invite};
use pushgate_tests::forge::{
    Draft, Forge, Item, POLICY, Package, Pushed, Submitter, framed, framed_as, random_hex,
};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Limits with so many bytes in quarantine.
fn quarantine(bytes: u64) -> pushgate_policies::Limits {
    pushgate_policies::Limits { quarantine_size: bytes, ..Default::default() }
}

async fn forge(change: impl FnOnce(&mut Config)) -> Forge {
    let mut config = Config::default();
    change(&mut config);
    Forge::start_with(POLICY, config).await
}

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// Contents that don't compress.
fn noise(length: usize) -> Item {
    let text: String = std::iter::repeat_with(random_hex)
        .flat_map(|hex| hex.into_bytes())
        .take(length)
        .map(char::from)
        .collect();
    Item::source("noise", &text)
}

async fn published(forge: &Forge, draft: &Draft) {
    let pushed = forge.push(draft).await;
    assert!(pushed.status.paths.iter().all(|p| p.state == PathState::Published), "{:?}", pushed.status);
}

/// An upload that was begun: its head, and as much of the body as is given.
async fn begun(forge: &Forge, push: &Announced, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST /api/v1/pushes/{}/nars HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\n",
        push.status.push, push.token
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body).await.unwrap();
    socket
}

/// Head and body of the answer, as text.
async fn answer(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !text.windows(2).any(|w| w == b"}}") {
            match socket.read(&mut buffer).await {
                Ok(n) if n > 0 => text.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.expect("an answer");
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until so many uploads are under way.
async fn uploads(forge: &Forge, count: usize) {
    for _ in 0..1000 {
        if forge.app.uploads.taken() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} uploads are under way instead of {count}", forge.app.uploads.taken());
}

fn owned(name: &str, owner: &str) -> Invite {
    Invite { owner: Some(owner.to_owned()), ..Forge::invitation(name) }
}
