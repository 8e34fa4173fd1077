//! The `pushgate-gateway` command.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use pushgate_formats::keys::KeyName;
use pushgate_gateway::{
    app::{App, DataDir, open_database},
    caches,
    clock::Clock,
    config::Config,
    db::{GATEWAY_HOST, NewEvent, Role},
    http,
    identities::{self, INVITE_TTL, Invite},
    tokens,
};
use tracing_subscriber::EnvFilter;

/// The pushgate server: takes signed pushes for Nix binary caches, checks them, and publishes what policy admits.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Data {
    /// Where database, blobs, keys and policies are kept.
    #[arg(long, env = "PUSHGATE_DATA_DIR")]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the caches of a data directory; makes one with the cache `main` where there is none.
    Serve {
        #[command(flatten)]
        data: Data,
        /// Address and port to listen on.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Configuration file (TOML): limits and logging.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Prints a one-time code by which somebody enrols a key: `pushgate join URL --invite CODE`.
    Invite {
        /// Name of the identity; for one that exists, the key is added to it.
        name: String,
        #[command(flatten)]
        data: Data,
        /// What it may do: submitter, verifier or admin.
        #[arg(long, default_value = "submitter")]
        role: Role,
        /// Who stands behind it. Identities of one owner count once; without an owner they vouch for nobody.
        #[arg(long)]
        owner: Option<String>,
        /// A group it belongs to; may be given several times.
        #[arg(long = "group")]
        groups: Vec<String>,
        /// A cache that the key may push to; may be given several times. Default: all.
        #[arg(long = "cache")]
        caches: Vec<String>,
        /// Days for which the key will be good. Default: until revoked.
        #[arg(long)]
        key_days: Option<u64>,
        /// Hours for which the invite is good.
        #[arg(long, default_value_t = INVITE_TTL / 3600)]
        hours: u64,
    },
    /// Prints a token with which a submitter pushes by stock Nix: for a netrc file, with the name as login.
    Token {
        /// Name of the submitter.
        name: String,
        #[command(flatten)]
        data: Data,
        /// The cache that the token is for.
        #[arg(long, default_value = "main")]
        cache: String,
        /// Days for which the token will be good. Default: until revoked.
        #[arg(long)]
        days: Option<u64>,
        /// Revokes all tokens of the submitter instead, at once and for good.
        #[arg(long, conflicts_with_all = ["cache", "days"])]
        revoke: bool,
    },
    /// Lists or revokes keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Lists or adds caches.
    #[command(subcommand)]
    Cache(CacheCommand),
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Lists enrolled keys, one a line: key, identity, role, state.
    List {
        #[command(flatten)]
        data: Data,
    },
    /// Revokes a key, by its name, at once and for good. What it published stays.
    Revoke {
        name: String,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Subcommand)]
enum CacheCommand {
    /// Lists caches, one a line: name and public key.
    List {
        #[command(flatten)]
        data: Data,
    },
    /// Adds a cache with a key and a starting policy of its own; a running gateway serves it at once.
    Add {
        name: String,
        #[command(flatten)]
        data: Data,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        // one line with its causes: whoever starts a server has no use for a backtrace
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let clock = Clock::default();
    match Cli::parse().command {
        Command::Serve { data, listen, config } => {
            let config = Config::read(config.as_deref())?;
            start_logging(&config);
            serve(&data, listen, config, clock).await
        }
        Command::Invite { name, data, role, owner, groups, caches, key_days, hours } => {
            let (db, _) = open_existing(&data, &clock).await?;
            let now = clock.now();
            let invite = Invite {
                name,
                role,
                owner,
                groups,
                caches: (!caches.is_empty()).then_some(caches),
                ttl: hours.saturating_mul(3600),
                key_expires: key_days.map(|days| now + days.saturating_mul(86_400)),
            };
            println!("{}", identities::invite(db.as_ref(), now, invite).await?);
            Ok(())
        }
        Command::Token { name, data, cache, days, revoke } => {
            let (db, _) = open_existing(&data, &clock).await?;
            if revoke {
                let revoked = tokens::revoke(db.as_ref(), &name, clock.now()).await?;
                println!("revoked {revoked} tokens of {name}");
                return Ok(());
            }
            let ttl = days.map(|days| days.saturating_mul(86_400));
            println!("{}", tokens::make_for(db.as_ref(), &name, &cache, clock.now(), ttl).await?);
            Ok(())
        }
        Command::Key(KeyCommand::List { data }) => {
            let (db, _) = open_existing(&data, &clock).await?;
            let now = clock.now();
            for key in db.keys().await? {
                let state = match (key.revoked, key.expires) {
                    (Some(_), _) => "revoked",
                    (None, Some(expires)) if expires <= now => "expired",
                    _ if key.frozen => "frozen",
                    _ => "good",
                };
                println!("{}\t{}\t{}\t{state}", key.key, key.identity_name, key.role.as_str());
            }
            Ok(())
        }
        Command::Key(KeyCommand::Revoke { name, data }) => {
            let (db, _) = open_existing(&data, &clock).await?;
            // the whole key as `list` prints it will do as well
            let name = name.split(':').next().unwrap_or_default();
            if !identities::revoke_key(db.as_ref(), &KeyName::new(name)?, clock.now()).await? {
                bail!("no enrolled key has the name `{name}`; see `pushgate-gateway key list`");
            }
            println!("revoked {name}");
            Ok(())
        }
        Command::Cache(CacheCommand::List { data }) => {
            let (db, _) = open_existing(&data, &clock).await?;
            for cache in db.caches().await? {
                println!("{}\t{}", cache.name, cache.public_key);
            }
            Ok(())
        }
        Command::Cache(CacheCommand::Add { name, data }) => {
            let (db, _) = open_existing(&data, &clock).await?;
            let places = DataDir::new(&data.data_dir).places;
            let row = caches::create(db.as_ref(), &places, &clock, &name).await?;
            let event = NewEvent {
                cache: Some(row.name.clone()),
                detail: row.public_key.to_string(),
                ..NewEvent::new(clock.now(), GATEWAY_HOST, "add-cache")
            };
            db.add_event(&event).await?;
            println!("{}\t{}", row.name, row.public_key);
            Ok(())
        }
    }
}

/// Opens the database of a data directory that `serve` made. A misspelt directory must not become a new gateway.
async fn open_existing(
    data: &Data,
    clock: &Clock,
) -> anyhow::Result<(std::sync::Arc<dyn pushgate_gateway::db::Db>, pushgate_gateway::db::GatewayRow)> {
    let dir = &data.data_dir;
    if !DataDir::new(dir).database.exists() {
        bail!(
            "there is no gateway in {}; start one with `pushgate-gateway serve --data-dir {0}`",
            dir.display()
        );
    }
    open_database(dir, clock).await
}

fn start_logging(config: &Config) {
    let filter = std::env::var("PUSHGATE_LOG").unwrap_or_else(|_| config.log.filter.clone());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if config.log.json { format.json().init() } else { format.init() }
}

async fn serve(data: &Data, listen: SocketAddr, config: Config, clock: Clock) -> anyhow::Result<()> {
    http::health::recorder();
    let _lock = lock(&data.data_dir)?;
    let app = App::open(&data.data_dir, config, clock).await?;
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let address = listener.local_addr()?;
    let caches = app.caches.all();
    let list = |each: &dyn Fn(&caches::Cache) -> String| {
        caches.iter().map(|c| each(c)).collect::<Vec<_>>().join(" ")
    };
    println!("extra-substituters = {}", list(&|c| format!("http://{address}/{}", c.name)));
    println!("extra-trusted-public-keys = {}", list(&|c| c.public_key().to_string()));
    tracing::info!(%address, gateway = app.gateway_id, "serving");
    http::serve(app, listener, stop_signal()).await?;
    Ok(())
}

/// Takes the data directory for this process: a second gateway would sweep away the uploads of the first.
fn lock(dir: &std::path::Path) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(dir).with_context(|| format!("the data directory {}", dir.display()))?;
    let path = dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("the lock {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another gateway serves {} already; stop it first", dir.display())
        }
        Err(std::fs::TryLockError::Error(e)) => {
            Err(e).with_context(|| format!("the lock {}", path.display()))
        }
    }
}

/// Resolves at SIGINT or SIGTERM.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}
