//! `pushgate policy`: what a policy file says, on files alone, and what it would say of recorded decisions. Only [`replay`],
//! and `check` when told to, ask a gateway; the language is that of the `policies`
//! crate, the same that a gateway decides by.

mod check;
mod explain;
pub mod replay;
mod test;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pushgate_formats::{acts::IdentityInfo, api::Role};
use pushgate_policies::{
    MAX_POLICY, Policy,
    file::{Checked, Enrolled, EnrolledIdentity},
};

pub use check::{CheckedFile, Mistake, check};
pub use explain::{ExplainError, Question, explain};
pub use test::{TestedFile, test};

use crate::output::Exit;

/// What a subcommand came to.
#[derive(Debug)]
pub struct Report<T> {
    pub files: Vec<T>,
    pub exit: Exit,
}

/// The JSON schema of policy files.
pub const fn schema() -> &'static str {
    pushgate_policies::schema()
}

/// The files meant by these arguments: of a directory, those that end in `.toml`, by name.
fn files(arguments: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for argument in arguments {
        if !argument.is_dir() {
            files.push(argument.clone());
            continue;
        }
        let mut found = vec![];
        for entry in fs::read_dir(argument)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                found.push(path);
            }
        }
        if found.is_empty() {
            return Err(io::Error::other(format!("{} has no policy files (`*.toml`)", argument.display())));
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// Whom a gateway knows, as far as a policy file may ask for them: those who may act.
pub fn enrolled(identities: Vec<IdentityInfo>) -> Enrolled {
    let identity = |i: IdentityInfo| EnrolledIdentity {
        name: i.name,
        owner: i.owner,
        groups: i.groups,
        is_verifier: i.role == Role::Verifier,
    };
    Enrolled { identities: identities.into_iter().filter(|i| !i.frozen).map(identity).collect() }
}

/// Reads and checks a file. The outer error is one of reading.
fn read(path: &Path, enrolled: Option<&Enrolled>) -> io::Result<Checked> {
    // what is larger is refused by its size alone
    if fs::metadata(path)?.len() > MAX_POLICY as u64 {
        return Err(io::Error::other(format!("the file has more than {MAX_POLICY} bytes")));
    }
    let bytes = fs::read(path)?;
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("the file is not UTF-8"))?;
    Ok(Policy::check_with(&text, None, enrolled))
}

#[cfg(test)]
mod tests;
