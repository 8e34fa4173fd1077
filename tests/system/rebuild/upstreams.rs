//! Inputs that only an upstream has: through the gateway, as the upstream's signed narinfo says, or not at all.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pushgate_formats::{Sha256, narinfo::fingerprint};

use super::*;

/// A cache that has one package; its NAR may be another than its narinfo says.
async fn upstream(item: &Item, nar: &[u8], by: &Submitter) -> String {
    let print = fingerprint(&item.path, &item.nar_hash, item.nar_size, &item.references);
    let info = format!(
        "StorePath: {}\nURL: nar/x.nar\nCompression: none\nNarHash: {}\nNarSize: {}\nReferences: \nSig: {}\n",
        item.path.absolute(),
        item.nar_hash,
        item.nar_size,
        by.key.sign(print.as_bytes()),
    );
    let files: HashMap<String, Vec<u8>> = HashMap::from([
        (format!("{}.narinfo", item.path.hash_part()), info.into_bytes()),
        ("nar/x.nar".to_owned(), nar.to_vec()),
    ]);
    async fn serve(State(files): State<Arc<HashMap<String, Vec<u8>>>>, Path(file): Path<String>) -> Response {
        match files.get(&file) {
            Some(bytes) => bytes.clone().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }
    let router = axum::Router::new().route("/{*file}", axum::routing::get(serve)).with_state(Arc::new(files));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn policy(url: &str, key: &Submitter) -> String {
    let upstream = format!("[[upstream]]\nurl = \"{url}\"\nkey = \"{}\"\n[[rule]]", key.key.public());
    rebuilt("1", "").replace("closure = \"self-contained\"\n", "").replacen("[[rule]]", &upstream, 1)
}

#[tokio::test]
async fn an_upstream_s_path_comes_through_the_gateway() {
    let key = Submitter::new("upstream-1");
    let stdenv = package("stdenv");
    let url = upstream(stdenv.out(), &stdenv.out().nar, &key).await;
    let forge = start(&policy(&url, &key)).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = begin("lib").input(&stdenv).build();
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let job = forge.lease(&victor).await;
    assert_eq!(job.inputs, std::slice::from_ref(stdenv.path()));
    let info = forge.view_narinfo(&job, stdenv.path().hash_part()).await.expect("an input");
    assert!(!info.print().contains("upstream-1"), "signed by the job alone");
    assert_eq!(forge.inputs_of(&job).await[stdenv.path()], stdenv.out().nar_hash);
    forge.build(&victor, &job, &lib.outputs).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
}

/// Its narinfo is right and its bytes are not: whoever reads them sees it, and can't attest to them.
#[tokio::test]
async fn an_upstream_that_serves_other_bytes_is_noticed() {
    let key = Submitter::new("upstream-1");
    let stdenv = package("stdenv");
    // of the same size
    let mut evil = stdenv.out().nar.clone();
    let at = evil.windows(6).position(|w| w == b"stdenv").expect("its name");
    evil[at] ^= 1;
    let url = upstream(stdenv.out(), &evil, &key).await;
    let forge = start(&policy(&url, &key)).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = begin("lib").input(&stdenv).build();
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let job = forge.lease(&victor).await;
    let info = forge.view_narinfo(&job, stdenv.path().hash_part()).await.expect("an input");
    assert_eq!(info.nar_hash, stdenv.out().nar_hash, "as the upstream has signed");
    let request = forge.http.get(format!("{}{}/{}", forge.url, job.view, info.url)).bearer_auth(&job.token);
    let got = match request.send().await.unwrap().bytes().await {
        Ok(bytes) => Some(Sha256::of(&bytes)),
        // or the gateway notices it and cuts them off
        Err(_) => None,
    };
    assert_ne!(got, Some(stdenv.out().nar_hash));
    let inputs = [(stdenv.path().clone(), Sha256::of(&evil))].into();
    let built = victor.built(&job, &inputs, &lib.outputs).sealed();
    refused(forge.report(&job, &built).await, 422, "attestation-invalid");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    forge.assert_nothing_public(&before).await;
    assert!(rows(&forge, lib.path()).await.is_empty());
}
