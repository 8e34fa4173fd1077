//! Connections on which nothing goes on.

use super::*;

/// Reads frames of HTTP/2 and answers pings, as long as the connection is open; gives the number of pings.
async fn answer_pings(socket: &mut TcpStream) -> usize {
    let mut pings = 0;
    loop {
        let mut head = [0; 9];
        if socket.read_exact(&mut head).await.is_err() {
            return pings;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if socket.read_exact(&mut payload).await.is_err() {
            return pings;
        }
        let (kind, flags) = (head[3], head[4]);
        let reply = match (kind, flags & 1) {
            (6, 0) => {
                pings += 1;
                [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat()
            }
            (4, 0) => vec![0, 0, 0, 4, 1, 0, 0, 0, 0],
            _ => continue,
        };
        if socket.write_all(&reply).await.is_err() {
            return pings;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_requests_is_closed_although_it_answers_pings() {
    let forge = forge(|config| (config.limits.header_timeout, config.limits.connections) = (1, 2)).await;
    let mut lively = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        lively.push(tokio::spawn(async move { answer_pings(&mut socket).await }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let request = forge.http.get(format!("{}/healthz", forge.url)).timeout(Duration::from_secs(20));
    assert_eq!(request.send().await.expect("a place becomes free").status().as_u16(), 200);
    for socket in lively {
        let pings =
            tokio::time::timeout(Duration::from_secs(20), socket).await.expect("it is closed").unwrap();
        assert!(pings > 0, "it was closed for want of pings");
    }
}

/// One who asks for a large file and doesn't read it loses his place; one who reads gets the whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_is_given_up() {
    let forge = forge(|config| {
        (config.limits.header_timeout, config.limits.download_idle, config.limits.connections) = (1, 1, 3);
    })
    .await;
    let alice = forge.submitter("alice").await;
    let item = Item::source("large", &"x".repeat(24 << 20));
    let mut draft = forge.draft(&alice).item(&item);
    draft.zstd = false;
    published(&forge, &draft).await;
    let narinfo = forge.narinfo(&item.path).await.unwrap();
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    // the test's own connection is closed when nothing goes over it
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut stuck = Vec::new();
    for _ in 0..8 {
        let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
        socket.write_all(format!("GET /main/{url} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        stuck.push(socket);
    }
    let whole = async {
        // others wait in line, and are served
        let got =
            forge.http.get(format!("{}/main/{url}", forge.url)).send().await.unwrap().bytes().await.unwrap();
        assert!(got == item.nar, "{} bytes came", got.len());
    };
    tokio::time::timeout(Duration::from_secs(60), whole).await.expect("a place becomes free");
    // long enough for each of them
    tokio::time::sleep(Duration::from_secs(4)).await;
    for mut socket in stuck {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut rest))
            .await
            .expect("it is closed");
        assert!(rest.len() < item.nar.len(), "all of it was sent");
    }
}
