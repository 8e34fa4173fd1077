//! Identities: who may push, rebuild or administer.

use std::fmt::Write;

use pushgate_formats::{
    acts::{ActDone, Deed, IdentityInfo, KeyInfo},
    api::Role,
};
use serde::Serialize;

use super::{AdminError, Said, act, columns, draw};
use crate::{
    api::printable,
    cli::admin::{Invite, Rotate, Submitter},
    clock, output,
    session::Session,
};

/// An invite as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Invited<'a> {
    code: &'a str,
    /// Seconds since 1970.
    expires: u64,
    /// Until when the replaced key is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_expires: Option<u64>,
    #[serde(flatten)]
    done: ActDone,
}

pub(super) async fn run(session: &Session, command: &Submitter) -> Result<Said, AdminError> {
    match command {
        Submitter::Invite(args) => invite(session, args).await,
        Submitter::Rotate(args) => rotate(session, args).await,
        Submitter::List(args) => {
            let greeting = session.greet().await?;
            let all = session.api.identities(&session.signer()).await.map_err(|e| greeting.explain(e))?;
            Ok(Said::new(&args.common, &all, || Said::words(lines(&all, clock::now()))))
        }
        Submitter::Groups(args) => {
            let deed = Deed::Groups { name: args.name.clone(), groups: args.groups.clone() };
            let done = act(session, deed, args.reason.text.as_deref()).await?;
            let groups = if args.none { "no groups".into() } else { args.groups.join(" ") };
            Ok(Said::new(&args.common, &done, || said(&done, &format!("{} has {groups} now", args.name))))
        }
        Submitter::Owner(args) => {
            let deed = Deed::Owner { name: args.name.clone(), owner: args.owner.clone() };
            let done = act(session, deed, Some(&args.reason.text)).await?;
            let owner = args.owner.as_deref().unwrap_or("nobody");
            Ok(Said::new(&args.common, &done, || {
                said(&done, &format!("{owner} stands behind {}", args.name))
            }))
        }
        Submitter::Freeze(args) => {
            let deed = Deed::Freeze { name: args.name.clone() };
            let done = act(session, deed, Some(&args.reason.text)).await?;
            Ok(Said::new(&args.common, &done, || said(&done, &format!("{} is frozen", args.name))))
        }
        Submitter::Unfreeze(args) => {
            let deed = Deed::Unfreeze { name: args.name.clone() };
            let done = act(session, deed, args.reason.text.as_deref()).await?;
            Ok(Said::new(&args.common, &done, || said(&done, &format!("{} is free", args.name))))
        }
        Submitter::RevokeKey(args) => {
            let done =
                act(session, Deed::RevokeKey { key: args.key.clone() }, Some(&args.reason.text)).await?;
            Ok(Said::new(&args.common, &done, || said(&done, &format!("{} is revoked", args.key))))
        }
    }
}

/// What holds now, and whether it held before.
fn said(done: &ActDone, what: &str) -> Said {
    let before = if done.changed == 0 { ", as before" } else { "" };
    Said::words(format!("{what}{before}\n"))
}

async fn invite(session: &Session, args: &Invite) -> Result<Said, AdminError> {
    let (text, code) = draw()?;
    let now = clock::now();
    let expires = now + args.hours * 3600;
    let deed = Deed::Invite {
        name: args.name.clone(),
        role: args.role,
        owner: args.owner.clone(),
        groups: args.groups.clone(),
        caches: (!args.caches.is_empty()).then(|| args.caches.clone()),
        code,
        code_expires: expires,
        key_expires: args.key_days.map(|days| now + days * 86_400),
    };
    let done = act(session, deed, args.reason.text.as_deref()).await?;
    let invited = Invited { code: &text, expires, old_expires: None, done };
    Ok(Said::new(&args.common, &invited, || Said {
        out: format!("{text}\n"),
        note: format!("{}\n", how_to_join(session, args.role, expires)),
    }))
}

async fn rotate(session: &Session, args: &Rotate) -> Result<Said, AdminError> {
    let greeting = session.greet().await?;
    let all = session.api.identities(&session.signer()).await.map_err(|e| greeting.explain(e))?;
    let (role, old) = all
        .iter()
        .flat_map(|identity| identity.keys.iter().map(|key| (identity.role, key)))
        .find(|(_, key)| name_of(key) == args.key.as_str())
        .ok_or_else(|| AdminError::Absent { what: "key", name: args.key.to_string() })?;
    let (text, code) = draw()?;
    let now = clock::now();
    let expires = now + args.hours * 3600;
    let grace = now + args.grace_days * 86_400;
    let old_expires = old.expires.map_or(grace, |e| e.min(grace));
    let deed = Deed::Rotate {
        key: args.key.clone(),
        code,
        code_expires: expires,
        old_expires,
        key_expires: args.key_days.map(|days| now + days * 86_400),
    };
    let done = act(session, deed, args.reason.text.as_deref()).await?;
    let invited = Invited { code: &text, expires, old_expires: Some(old_expires), done };
    Ok(Said::new(&args.common, &invited, || Said {
        out: format!("{text}\n"),
        note: format!(
            "{} stays good until {}; {} --again\n",
            args.key,
            clock::utc(old_expires),
            how_to_join(session, role, expires)
        ),
    }))
}

/// What the one who gets the code does with it.
fn how_to_join(session: &Session, role: Role, expires: u64) -> String {
    let url = &session.gateway.url;
    let until = clock::utc(expires);
    match role {
        Role::Verifier => format!(
            "the code is good until {until}: pushgate-verifier join {url} --invite CODE --work-dir DIR"
        ),
        Role::Submitter | Role::Admin => {
            format!("the code is good until {until}: pushgate join {url} --invite CODE")
        }
    }
}

/// A key's name; a gateway's text.
fn name_of(key: &KeyInfo) -> &str {
    key.key.split(':').next().unwrap_or_default()
}

/// One line for each identity, and one below it for each of its keys.
fn lines(all: &[IdentityInfo], now: u64) -> String {
    if all.is_empty() {
        return "nobody is enrolled\n".to_owned();
    }
    let heads: Vec<Vec<String>> = all
        .iter()
        .map(|i| {
            vec![
                i.name.clone(),
                i.role.as_str().to_owned(),
                i.owner.as_ref().map_or_else(|| "no owner".to_owned(), |owner| format!("owner {owner}")),
                if i.groups.is_empty() { "-".to_owned() } else { i.groups.join(" ") },
                if i.frozen { "FROZEN" } else { "free" }.to_owned(),
                format!("{} token{}", i.tokens, if i.tokens == 1 { "" } else { "s" }),
                i.last_push.map_or_else(
                    || "never pushed".to_owned(),
                    |last| format!("pushed {}", output::ago(now.saturating_sub(last))),
                ),
            ]
        })
        .collect();
    let mut out = String::new();
    for (head, identity) in columns(&heads).into_iter().zip(all) {
        let _ = writeln!(out, "{head}");
        for key in &identity.keys {
            let caches =
                key.caches.as_ref().map_or_else(String::new, |caches| format!(" for {}", caches.join(" ")));
            let name = printable(name_of(key));
            let _ = writeln!(out, "  key {name}{}: {}", printable(&caches), state(key, now));
        }
    }
    out
}

fn state(key: &KeyInfo, now: u64) -> String {
    let since = clock::utc(key.created);
    match (key.revoked, key.expires) {
        (Some(revoked), _) => format!("revoked {}", clock::utc(revoked)),
        (None, Some(expires)) if expires <= now => format!("expired {}", clock::utc(expires)),
        (None, Some(expires)) => format!("good until {}, enrolled {since}", clock::utc(expires)),
        (None, None) => format!("good, enrolled {since}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list() {
        let key = |name: &str, expires, revoked| KeyInfo {
            key: format!("{name}:AAAA"),
            caches: None,
            created: 1_000_000,
            expires,
            revoked,
        };
        let alice = IdentityInfo {
            name: "alice".into(),
            role: Role::Submitter,
            owner: Some("alice@example.org".into()),
            groups: vec!["core".into(), "ci".into()],
            frozen: true,
            created: 0,
            keys: vec![
                key("alice-1", None, Some(1_500_000)),
                KeyInfo { caches: Some(vec!["main".into()]), ..key("alice-2", Some(3_000_000), None) },
                key("alice-3", Some(1_900_000), None),
            ],
            tokens: 1,
            last_push: Some(1_999_000),
        };
        let ada = IdentityInfo {
            name: "a\u{1b}[2Jda".into(),
            role: Role::Admin,
            owner: None,
            groups: vec![],
            frozen: false,
            keys: vec![key("ada-1", None, None)],
            tokens: 0,
            last_push: None,
            ..alice.clone()
        };
        assert_eq!(
            lines(&[ada, alice], 2_000_000),
            "a[2Jda  admin      no owner                 -        free    0 tokens  never pushed\n  \
               key ada-1: good, enrolled 1970-01-12 13:46:40Z\n\
             alice   submitter  owner alice@example.org  core ci  FROZEN  1 token   pushed 16 min ago\n  \
               key alice-1: revoked 1970-01-18 08:40:00Z\n  \
               key alice-2 for main: good until 1970-02-04 17:20:00Z, enrolled 1970-01-12 13:46:40Z\n  \
               key alice-3: expired 1970-01-22 23:46:40Z\n"
        );
        assert_eq!(lines(&[], 0), "nobody is enrolled\n");
    }
}
