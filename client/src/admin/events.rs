//! What was done: events, page by page, and as they come.

use pushgate_formats::acts::Event;

use super::{AdminError, Said, columns};
use crate::{api::printable, cli::admin::Events, clock, output, session::Session};

/// How long the gateway is asked to wait for events, in seconds.
const WAIT: u64 = 25;

pub(super) async fn run(
    session: &Session,
    args: &Events,
    mut show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    let greeting = session.greet().await?;
    let (mut after, mut wait) = (args.after, 0);
    loop {
        let page = session.api.events(after, args.cache.as_deref(), wait, &session.signer()).await;
        let page = page.map_err(|e| greeting.explain(e))?;
        let newest = page.iter().map(|event| event.id).max();
        if !page.is_empty() && !show(&text(&page, args.common.json)) {
            return Ok(Said::default());
        }
        // numbers only grow, so that an odd gateway can't have the same page shown for ever
        let more = newest > after && args.after.is_some();
        after = Some(newest.max(after).unwrap_or(0));
        if !more {
            if !args.follow {
                return Ok(Said::default());
            }
            wait = WAIT;
        }
    }
}

fn text(page: &[Event], json: bool) -> String {
    if json { page.iter().map(output::json_line).collect() } else { lines(page) }
}

/// One line each: number, time, who, what, to whom, about which path, and why.
fn lines(page: &[Event]) -> String {
    let rows: Vec<Vec<String>> = page
        .iter()
        .map(|event| {
            let key = event.key.as_ref().map_or_else(String::new, |key| format!(" ({key})"));
            vec![
                event.id.to_string(),
                clock::utc(event.time),
                format!("{}{key}", event.who),
                event.kind.clone(),
                rest(event),
            ]
        })
        .collect();
    columns(&rows).into_iter().map(|line| line + "\n").collect()
}

fn rest(event: &Event) -> String {
    let mut words: Vec<String> = Vec::new();
    words.extend(event.subject.clone());
    if !event.detail.is_empty() {
        words.push(event.detail.clone());
    }
    words.extend(event.cache.as_ref().map(|cache| format!("in {cache}")));
    words.extend(event.path.as_ref().map(ToString::to_string));
    if !event.why.is_empty() {
        words.push(format!("\u{201c}{}\u{201d}", printable(&event.why)));
    }
    words.join("  ")
}

#[cfg(test)]
mod tests {
    use pushgate_formats::StorePath;

    use super::*;

    #[test]
    fn lines_of_events() {
        let freeze = Event {
            id: 7,
            time: 1_000_000,
            who: "ada".into(),
            key: Some("ada-1".into()),
            kind: "freeze".into(),
            cache: None,
            path: None,
            nar_hash: None,
            subject: Some("alice".into()),
            detail: String::new(),
            why: "lost\n\u{1b}[31mlaptop".into(),
        };
        let path = StorePath::from_digest(&[1; 20], "hello-2.12").unwrap();
        let approve = Event {
            id: 12,
            who: "gateway host".into(),
            key: None,
            kind: "token".into(),
            cache: Some("main".into()),
            path: Some(path.clone()),
            why: String::new(),
            ..freeze.clone()
        };
        assert_eq!(
            lines(&[freeze.clone(), approve]),
            format!(
                "7   1970-01-12 13:46:40Z  ada (ada-1)   freeze  alice  “lost [31mlaptop”\n\
                 12  1970-01-12 13:46:40Z  gateway host  token   alice  in main  {path}\n"
            )
        );
        let json = text(&[freeze.clone(), freeze.clone()], true);
        assert_eq!(json.lines().count(), 2);
        assert_eq!(serde_json::from_str::<Event>(json.lines().next().unwrap()).unwrap(), freeze);
        assert!(!json.contains('\u{1b}'));
    }
}
