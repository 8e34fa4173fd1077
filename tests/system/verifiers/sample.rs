//! Claims that are drawn for a rebuild although their rule would publish them.

use pushgate_tests::process::{Verifier, wait_for};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Stage, claim, is_public, policy, rebuilds, wait};

#[test]
fn a_drawn_claim_waits_for_its_rebuild_and_the_draw_can_be_replayed() {
    let rest = "require = \"derivation\"\nsample = { rate = 1 }";
    let mut stage = Stage::set_with(&policy(rest, ""), "[sample]\nepoch = \"2s\"\n");
    let tool = stage.build(r#"run "tool" "echo tool > $out" {}"#);
    stage.push_held(&tool);
    let held = claim(&stage.alice, &tool).unwrap();
    assert_eq!((held["state"].as_str(), held["code"].as_str()), (Some("held"), Some("needs-rebuild")));
    assert!(held["message"].to_string().contains("it was drawn for a rebuild"), "{held}");
    assert!(!is_public(&stage.gateway, &tool));

    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    stage.wait_public(&tool);
    assert_eq!(rebuilds(&stage.gateway, &tool), 1);
    verifier.idle();

    let ada = stage.admin();
    let replay = || ada.run(&["admin", "sample", "replay", "1"]);
    let honest = wait_for("the end of the epoch", || Some(replay()).filter(|ran| ran.code == Some(0)));
    assert!(honest.out.contains("each of 1 draws (1 for a rebuild)"), "{}", honest.out);

    // whoever has the database at hand says that it wasn't drawn
    drop(verifier);
    stage.gateway.stop();
    let options = SqliteConnectOptions::new().filename(stage.gateway.data().join("gateway.db"));
    wait(async {
        let mut db = SqliteConnection::connect_with(&options).await.unwrap();
        let body: Vec<u8> = sqlx::query_scalar("SELECT body FROM draws").fetch_one(&mut db).await.unwrap();
        let body = String::from_utf8(body).unwrap();
        let changed = body.replace("\"drawn\":true", "\"drawn\":false");
        assert_ne!(body, changed);
        let changing = sqlx::query("UPDATE draws SET body = ?").bind(changed.into_bytes());
        assert_eq!(changing.execute(&mut db).await.unwrap().rows_affected(), 1);
        db.close().await.unwrap();
    });
    stage.gateway.restart();
    let dishonest = replay().ended_with(1);
    assert!(dishonest.err.contains(tool.trim_start_matches("/nix/store/")), "{}", dishonest.err);
}
