//! The gateway's own configuration file (`--config FILE`): limits and logging. Which paths are published is policy and
//! lives in the policy files.

use std::path::Path;

use serde::Deserialize;

/// The whole file; every field has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    pub limits: Limits,
    pub log: Log,
}

/// Bounds on what runs at once.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Uploads under way at once, over all submitters. Default: 64.
    pub uploads: usize,
    /// Uploads under way at once of one submitter. Default: 16.
    pub uploads_per_submitter: usize,
    /// Seconds without a byte after which an upload is given up. Default: 60.
    pub upload_idle: u64,
    /// Bytes per second below which an upload is given up, measured over `upload-idle` seconds. Default: 1024.
    pub upload_rate: u64,
    /// Seconds for which a reader may take nothing of an answer before the connection is closed; at most twice that after a
    /// quicker part. Default: 60.
    pub download_idle: u64,
    /// Bytes per second that a reader has to take of an answer, measured over `download-idle` seconds of waiting for it.
    /// Default: 1024.
    pub download_rate: u64,
    /// Connections served at once; fewer where the process may not have so many files open. Default: 4096.
    pub connections: usize,
    /// Seconds within which a connection has to send a request's header, also between requests. Default: 30.
    pub header_timeout: u64,
    /// Announcements read and parsed at once; each costs several times its size in memory. Default: 2.
    pub announcements: usize,
    /// Wrong invite codes a minute, over all comers, after which further wrong ones are refused without being looked into; a
    /// right one is always good. Default: 20.
    pub invite_attempts: u32,
}

/// What is logged, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Log {
    /// A filter as of `tracing-subscriber`: `info`, `pushgate_gateway=debug,warn`. The environment variable
    /// `PUSHGATE_LOG` goes before it. Default: `info`.
    pub filter: String,
    /// One JSON object a line. Default: false.
    pub json: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uploads: 64,
            uploads_per_submitter: 16,
            upload_idle: 60,
            upload_rate: 1024,
            download_idle: 60,
            download_rate: 1024,
            connections: 4096,
            header_timeout: 30,
            announcements: 2,
            invite_attempts: 20,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), json: false }
    }
}

impl Config {
    /// Reads the file; without one, the defaults.
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(file)
            .map_err(|e| anyhow::anyhow!("the configuration file {}: {e}", file.display()))?;
        toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read_and_unknown_ones_are_refused() {
        let config: Config = toml::from_str(
            "[limits]\nuploads = 1\nuploads-per-submitter = 2\nupload-idle = 3\nupload-rate = 4\nconnections = 5\n\
             download-idle = 9\ndownload-rate = 10\nheader-timeout = 8\nannouncements = 6\ninvite-attempts = 7\n[log]\nfilter = \"debug\"\njson = true\n",
        )
        .unwrap();
        assert_eq!(config.limits.uploads_per_submitter, 2);
        assert_eq!(config.limits.invite_attempts, 7);
        assert_eq!(config.limits.header_timeout, 8);
        assert_eq!((config.limits.download_idle, config.limits.download_rate), (9, 10));
        assert!(config.log.json);
        assert!(toml::from_str::<Config>("[limits]\nupload = 1\n").is_err());
    }
}
