//! Listens to what is asked of a server.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// Passes connections on to a port of this machine and writes down the requests, all without a body. Ends with the
/// test's process.
pub struct Recorder {
    port: u16,
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Recorder {
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let notes = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let notes = notes.clone();
                std::thread::spawn(move || pass(stream, server, &notes));
            }
        });
        Self { port, asked }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Method and path of each request so far, each once.
    pub fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().expect("nobody panics with it").clone()
    }
}

fn pass(client: TcpStream, server: u16, notes: &Mutex<BTreeSet<String>>) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server))?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        // either side goes away in its own time
        let _ = io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut client = BufReader::new(client);
    let mut line = String::new();
    while client.read_line(&mut line)? > 0 {
        if let Some(request) = line.trim_end().strip_suffix(" HTTP/1.1") {
            notes.lock().expect("nobody panics with it").insert(request.to_owned());
        }
        server.write_all(line.as_bytes())?;
        line.clear();
    }
    server.shutdown(Shutdown::Write)
}
