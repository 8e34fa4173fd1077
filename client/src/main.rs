//! The `pushgate` command: reads arguments, calls the library, prints.

use std::{
    io::{ErrorKind, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use pushgate_client::{
    admin,
    api::printable,
    build::{self, Target},
    cli::{
        Cli, Command, Join, PolicyCommand, PolicyExplain, Push, Status, Token, admin::Admin, build::Build,
        claims::Why, replay::Replay,
    },
    clock,
    config::ConfigDir,
    difference,
    join::{How, join},
    nix::StoreLocation,
    output::{self, Exit, build::Prefixes},
    policy::{self, replay::ReplayError},
    progress::Progress,
    push::{self, Options},
    review,
    session::Session,
    status::{self, Question},
    token,
};
use pushgate_formats::api::Role;
use pushgate_policies::file::Enrolled;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("PUSHGATE_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // one line, with its causes, each fit for a terminal wherever its text comes from
            let causes: Vec<_> = error.chain().map(|cause| printable(&cause.to_string())).collect();
            eprintln!("error: {}", causes.join(": "));
            Exit::Error.into()
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> Result<Exit> {
    // policy files need no settings
    let dir = ConfigDir::from_env;
    match cli.command {
        Command::Policy(command) => run_policy(command).await,
        Command::Why(args) => run_why(&dir()?, args).await,
        Command::Join(args) => run_join(&dir()?, args).await,
        Command::Push(args) => run_push(&dir()?, args).await,
        Command::Build(args) => run_build(&dir()?, args).await,
        Command::Status(args) => run_status(&dir()?, args).await,
        Command::Token(args) => run_token(&dir()?, args).await,
        Command::Admin(args) => run_admin(&dir()?, args).await,
    }
}

async fn run_join(dir: &ConfigDir, args: Join) -> Result<Exit> {
    let how = How { name: args.name.as_deref(), again: args.again, role: args.role };
    let joined = join(dir, &args.url, &args.invite, &how).await?;
    print(&output::joined(&joined))?;
    Ok(Exit::Accepted)
}

async fn run_push(dir: &ConfigDir, args: Push) -> Result<Exit> {
    let session = Session::open(dir, args.gateway.url.as_deref())?;
    let options = Options {
        roots: args.paths,
        cache: args.cache,
        wait: args.wait,
        timeout: Duration::from_secs(args.timeout),
        jobs: args.jobs.map(usize::from),
        level: args.compression_level,
    };
    let progress = Progress::on_terminal(true);
    let pushed = push::push(&session, &options, &progress).await;
    progress.finish();
    let report = pushed?;
    let text = if args.json { output::json(&report) } else { output::push(&report, args.verbose) };
    print(&text)?;
    if !args.json {
        eprint!("{}", output::remarks(&report));
    }
    Ok(Exit::of_push(&report))
}

async fn run_build(dir: &ConfigDir, args: Build) -> Result<Exit> {
    let target =
        Target::parse(args.what.as_deref(), &args.attrs, args.expr.as_deref(), |path| path.exists())?;
    let session = Session::open(dir, args.gateway.url.as_deref())?;
    let on_terminal = std::io::stderr().is_terminal();
    let options = build::Options {
        target,
        cache: args.cache,
        wait: args.wait,
        substitute: !args.no_substitute,
        timeout: Duration::from_secs(args.timeout),
        colours: on_terminal,
    };
    let progress = Progress::on_terminal(true);
    let (beside, prefixes) = (progress.clone(), Prefixes::default());
    let tell = move |news| beside.beside(&prefixes.line(&news));
    let built = build::build(&session, &options, &progress, Arc::new(tell)).await;
    progress.finish();
    let report = match built {
        // the whole announcement is refused, so that there is no report of it
        Err(error) if error.is_refusal() => {
            eprintln!("error: {}", printable(&error.to_string()));
            return Ok(Exit::Rejected);
        }
        built => built?,
    };
    print(&if args.json { output::json(&report) } else { output::build::outputs(&report) })?;
    eprint!("{}", output::build::remarks(&report));
    Ok(Exit::of_build(&report))
}

async fn run_status(dir: &ConfigDir, args: Status) -> Result<Exit> {
    let question = Question::parse(args.what.as_deref(), &StoreLocation::from_env()?)?;
    let session = Session::open(dir, args.gateway.url.as_deref())?;
    let answer = status::ask(&session, &question, &args.cache).await?;
    let text =
        if args.json { output::json(&answer) } else { output::status(&answer, args.verbose, clock::now()) };
    print(&text)?;
    Ok(Exit::of_status(&answer))
}

async fn run_token(dir: &ConfigDir, args: Token) -> Result<Exit> {
    let session = Session::open(dir, args.gateway.url.as_deref())?;
    let made = token::make(&session, &args.cache).await?;
    let text = if args.netrc { token::netrc_line(&session.gateway.url, &made)? } else { made.token };
    print(&format!("{text}\n"))?;
    let (url, key) = (&session.gateway.url, dir.key_path(&session.gateway));
    eprintln!("push with: nix copy --to '{url}/{}/push?secret-key={}' PATH", args.cache, key.display());
    Ok(Exit::Accepted)
}

async fn run_admin(dir: &ConfigDir, args: Admin) -> Result<Exit> {
    let session = Session::open_as(dir, args.command.gateway().url.as_deref(), Role::Admin)?;
    let mut failed = None;
    let said = admin::run(&session, &args, |page| match write(page) {
        Ok(read_on) => read_on,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    let said = said.await?;
    if let Some(error) = failed {
        return Err(error);
    }
    print(&said.out)?;
    eprint!("{}", said.note);
    Ok(Exit::Accepted)
}

async fn run_why(dir: &ConfigDir, args: Why) -> Result<Exit> {
    let path = review::path(&args.path)?;
    let session = Session::open(dir, args.gateway.url.as_deref())?;
    let greeting = session.greet().await?;
    greeting.cache(&session, &args.cache)?;
    if args.diff {
        let all = session.api.differences(&args.cache, &path, &session.signer()).await;
        let all = all.map_err(|e| greeting.explain(e))?;
        // https://no-color.org
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let text = || difference::differences(&path, &args.cache, &all, clock::now(), colour);
        print(&if args.json { output::json(&all) } else { text() })?;
        return Ok(Exit::Accepted);
    }
    let why = session.api.why(&args.cache, &path, &session.signer()).await;
    let why = why.map_err(|e| greeting.explain(e))?;
    print(&if args.json { output::json(&why) } else { review::why(&why, clock::now()) })?;
    Ok(if review::is_rejected(&why) { Exit::Rejected } else { Exit::Accepted })
}

/// What the gateway's own policy makes of the claims of a path.
async fn explain_at_gateway(args: &PolicyExplain) -> Result<Exit> {
    let path = review::path(&args.path)?;
    let session = Session::open(&ConfigDir::from_env()?, args.gateway.url.as_deref())?;
    let greeting = session.greet().await?;
    greeting.cache(&session, &args.cache)?;
    let why = session.api.why(&args.cache, &path, &session.signer()).await;
    let why = why.map_err(|e| greeting.explain(e))?;
    let all: Vec<_> = why.claims.into_iter().filter_map(|one| one.explanation).collect();
    anyhow::ensure!(
        !all.is_empty(),
        "the policy of `{}` wasn't asked about `{path}` yet: pushgate why {path} tells what of it there is",
        printable(&args.cache)
    );
    let text =
        || all.iter().map(|one| output::printable_lines(&one.to_string())).collect::<Vec<_>>().join("\n");
    print(&if args.json { output::json(&all) } else { text() })?;
    Ok(Exit::Accepted)
}

async fn run_replay(args: Replay) -> Result<Exit> {
    let mut failed = None;
    let replayed = policy::replay::run(ConfigDir::from_env, &args, |text| match write(text) {
        Ok(read_on) => read_on,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    let counts = match replayed.await {
        // of several lines, and of a file of one's own
        Err(ReplayError::Policy(error)) => {
            eprintln!("{}", output::printable_lines(&error.to_string()));
            return Ok(Exit::Error);
        }
        replayed => replayed?,
    };
    match failed {
        Some(error) => Err(error),
        None if counts.differ > 0 => Ok(Exit::Rejected),
        None => Ok(Exit::Accepted),
    }
}

/// Whom a gateway knows.
async fn known_to_gateway(url: Option<&str>) -> Result<Enrolled> {
    let session = Session::open_as(&ConfigDir::from_env()?, url, Role::Admin)?;
    let greeting = session.greet().await?;
    let all = session.api.identities(&session.signer()).await.map_err(|e| greeting.explain(e))?;
    Ok(policy::enrolled(all))
}

async fn run_policy(command: PolicyCommand) -> Result<Exit> {
    let (text, exit) = match command {
        PolicyCommand::Check(args) => {
            let enrolled = match args.enrolled {
                true => Some(known_to_gateway(args.gateway.url.as_deref()).await?),
                false => None,
            };
            let report = policy::check(&args.files, enrolled.as_ref())?;
            (if args.json { output::json(&report.files) } else { report.text() }, report.exit)
        }
        PolicyCommand::Test(args) => {
            let report = policy::test(&args.files)?;
            (if args.json { output::json(&report.files) } else { report.text() }, report.exit)
        }
        PolicyCommand::Explain(args) => {
            let Some(file) = &args.policy else { return explain_at_gateway(&args).await };
            let explanation = match policy::explain(&args, file) {
                // several lines, each with its place
                Err(policy::ExplainError::Policy(error)) => {
                    eprintln!("{}", output::printable_lines(&error.to_string()));
                    return Ok(Exit::Error);
                }
                explained => explained?,
            };
            let text = if args.json {
                output::json(&explanation)
            } else {
                output::printable_lines(&explanation.to_string())
            };
            (text, Exit::Accepted)
        }
        // asks a gateway
        PolicyCommand::Replay(args) => return run_replay(args).await,
        PolicyCommand::Schema(_) => (policy::schema().to_owned(), Exit::Accepted),
    };
    print(&text)?;
    Ok(exit)
}

/// Prints to standard output; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    write(text).map(drop)
}

/// The same; false where the reader has gone.
fn write(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("the result can't be printed"),
    }
}
