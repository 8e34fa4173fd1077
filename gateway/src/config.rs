//! The gateway's own configuration file (`--config FILE`): limits and logging. Which paths are published is policy and
//! lives in the policy files.

use std::{ops::RangeInclusive, path::Path};

use pushgate_formats::api::MAX_PATHS;
use pushgate_policies::units::{de_duration, de_size};
use serde::Deserialize;

/// The whole file; every field has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    pub limits: Limits,
    pub log: Log,
    pub sample: Sample,
}

/// Bounds on what runs at once and on what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Uploads under way at once, over all submitters. The last quarter of the places is for owners who have none under
    /// way. Default: 64.
    pub uploads: usize,
    /// Uploads under way at once of one owner, whatever number of identities he has; an identity without an owner counts
    /// by itself. Default: 16.
    pub uploads_per_submitter: usize,
    /// Seconds without a byte after which an upload is given up. Default: 60.
    pub upload_idle: u64,
    /// Bytes per second below which an upload is given up, measured over `upload-idle` seconds. Default: 1024.
    pub upload_rate: u64,
    /// Longest that one upload may take in all. Seconds here, a text such as `"6h"` in the file. Default: 6 hours.
    #[serde(deserialize_with = "de_duration")]
    pub upload_time: u64,
    /// Seconds for which a reader may take nothing of an answer before the connection is closed; at most twice that after a
    /// quicker part. Default: 60.
    pub download_idle: u64,
    /// Bytes per second that a reader has to take of an answer, measured over `download-idle` seconds of waiting for it; on
    /// HTTP/2 over `header-timeout`. Default: 1024.
    pub download_rate: u64,
    /// Connections served at once; fewer where the process may not have so many files open. Default: 4096.
    pub connections: usize,
    /// Seconds within which a connection has to send a request's header, also between requests. Default: 30.
    pub header_timeout: u64,
    /// Announcements read and parsed at once; each costs several times its size in memory. Default: 2.
    pub announcements: usize,
    /// Paths in one announcement. Default and most: 20,000.
    pub paths: usize,
    /// Pushes of one submitter with a path that isn't settled for good. Default: 5000.
    pub open_pushes: u64,
    /// Paths of one submitter that aren't settled for good, over all of his pushes. Default: 200,000.
    pub open_paths: u64,
    /// Compressed bytes in quarantine over all submitters; the policy has the limit of each. Bytes here, a text such as
    /// `"256 GiB"` in the file. Default: 256 GiB.
    #[serde(deserialize_with = "de_size")]
    pub quarantine: u64,
    /// Free disk space below which nothing is taken any more. Likewise. Default: 2 GiB.
    #[serde(deserialize_with = "de_size")]
    pub free_space: u64,
    /// Memory of the process that what is under way is admitted for. Likewise. Default: 2 GiB.
    #[serde(deserialize_with = "de_size")]
    pub memory: u64,
    /// How long ended pushes, and derivations that nobody uses, are kept. Seconds here, a text such as `"30d"` in the file.
    /// Default: 30 days.
    #[serde(deserialize_with = "de_duration")]
    pub keep_ended: u64,
    /// Wrong invite codes a minute, over all comers, after which further wrong ones are refused without being looked into; a
    /// right one is always good. Default: 20.
    pub invite_attempts: u32,
}

/// The rebuild sample.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Sample {
    /// How long one seed is in force; then it is revealed, and everybody can replay its draws. Seconds here, a text such as
    /// `"1d"` in the file. Default: a day.
    #[serde(deserialize_with = "de_duration")]
    pub epoch: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self { epoch: 86_400 }
    }
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
            upload_time: 6 * 3600,
            download_idle: 60,
            download_rate: 1024,
            connections: 4096,
            header_timeout: 30,
            announcements: 2,
            paths: MAX_PATHS,
            open_pushes: 5000,
            open_paths: 200_000,
            quarantine: 256 << 30,
            free_space: 2 << 30,
            memory: 2 << 30,
            keep_ended: 30 * 86_400,
            invite_attempts: 20,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), json: false }
    }
}

/// A value that would switch the gateway off, or a limit of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`limits.{field}` is {found}; {allowed}")]
pub struct ConfigError {
    field: &'static str,
    found: u64,
    allowed: String,
}

impl Config {
    /// Reads the file; without one, the defaults.
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(file)
            .map_err(|e| anyhow::anyhow!("the configuration file {}: {e}", file.display()))?;
        let config: Self = toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        config.limits.check().map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        if config.sample.epoch == 0 {
            anyhow::bail!("{}: `sample.epoch` is 0; at least a second is needed", file.display());
        }
        Ok(config)
    }
}

impl Limits {
    /// Refuses values that make no sense, with the field's name. What a limit of 0 is meant to say nobody can tell.
    pub fn check(&self) -> Result<(), ConfigError> {
        const MIB: u64 = 1 << 20;
        const TIB: u64 = 1 << 40;
        const DAY: u64 = 86_400;
        let fields: [(&str, u64, RangeInclusive<u64>, &str); 18] = [
            ("uploads", self.uploads as u64, 1..=4096, ""),
            ("uploads-per-submitter", self.uploads_per_submitter as u64, 1..=4096, ""),
            ("upload-idle", self.upload_idle, 1..=3600, " seconds"),
            ("upload-rate", self.upload_rate, 1..=1024 * MIB, " bytes a second"),
            ("upload-time", self.upload_time, self.upload_idle..=30 * DAY, " seconds"),
            ("download-idle", self.download_idle, 1..=3600, " seconds"),
            ("download-rate", self.download_rate, 1..=1024 * MIB, " bytes a second"),
            ("connections", self.connections as u64, 1..=1_000_000, ""),
            ("header-timeout", self.header_timeout, 1..=3600, " seconds"),
            ("announcements", self.announcements as u64, 1..=64, ""),
            ("paths", self.paths as u64, 1..=MAX_PATHS as u64, ""),
            ("open-pushes", self.open_pushes, 1..=1_000_000, ""),
            ("open-paths", self.open_paths, self.paths as u64..=100_000_000, ""),
            ("quarantine", self.quarantine, 64 * MIB..=1024 * 1024 * TIB, " bytes"),
            ("free-space", self.free_space, 64 * MIB..=1024 * TIB, " bytes"),
            ("memory", self.memory, crate::limits::least_memory(self.connections)..=1024 * TIB, " bytes"),
            ("keep-ended", self.keep_ended, DAY..=36_500 * DAY, " seconds"),
            ("invite-attempts", u64::from(self.invite_attempts), 1..=1_000_000, ""),
        ];
        for (field, found, allowed, unit) in fields {
            if !allowed.contains(&found) {
                let allowed = format!("{} to {}{unit} are allowed", allowed.start(), allowed.end());
                return Err(ConfigError { field, found, allowed });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn every_field_is_read_and_unknown_ones_are_refused() {
        let config: Config = toml::from_str(
            "[limits]\nuploads = 1\nuploads-per-submitter = 2\nupload-idle = 3\nupload-rate = 4\nconnections = 5\n\
             header-timeout = 8\nannouncements = 6\ninvite-attempts = 7\nupload-time = \"2h\"\npaths = 9\nopen-pushes = 10\n\
             open-paths = 11\nquarantine = \"12 GiB\"\nfree-space = \"13 MiB\"\nmemory = \"14 MiB\"\nkeep-ended = \"15d\"\n\
             download-idle = 16\ndownload-rate = 17\n\
             [sample]\nepoch = \"2h\"\n\
             [log]\nfilter = \"debug\"\njson = true\n",
        )
        .unwrap();
        let expected = Limits {
            uploads: 1,
            uploads_per_submitter: 2,
            upload_idle: 3,
            upload_rate: 4,
            upload_time: 7200,
            download_idle: 16,
            download_rate: 17,
            connections: 5,
            header_timeout: 8,
            announcements: 6,
            paths: 9,
            open_pushes: 10,
            open_paths: 11,
            quarantine: 12 << 30,
            free_space: 13 << 20,
            memory: 14 << 20,
            keep_ended: 15 * 86_400,
            invite_attempts: 7,
        };
        assert_eq!(config.limits, expected);
        assert_eq!(config.sample, Sample { epoch: 7200 });
        assert_eq!(config.log, Log { filter: "debug".into(), json: true });
        assert!(toml::from_str::<Config>("[limits]\nupload = 1\n").is_err());
    }

    #[test]
    fn the_defaults_are_allowed() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[rstest]
    #[case("uploads", "0", "`limits.uploads` is 0; 1 to 4096 are allowed")]
    #[case("uploads", "5000", "`limits.uploads` is 5000; 1 to 4096 are allowed")]
    #[case("uploads-per-submitter", "0", "`limits.uploads-per-submitter` is 0; 1 to 4096 are allowed")]
    #[case("upload-idle", "0", "`limits.upload-idle` is 0; 1 to 3600 seconds are allowed")]
    #[case("upload-rate", "0", "`limits.upload-rate` is 0; 1 to 1073741824 bytes a second are allowed")]
    #[case("upload-time", "\"59s\"", "`limits.upload-time` is 59; 60 to 2592000 seconds are allowed")]
    #[case("download-idle", "0", "`limits.download-idle` is 0; 1 to 3600 seconds are allowed")]
    #[case("download-rate", "0", "`limits.download-rate` is 0; 1 to 1073741824 bytes a second are allowed")]
    #[case("connections", "0", "`limits.connections` is 0; 1 to 1000000 are allowed")]
    #[case("header-timeout", "0", "`limits.header-timeout` is 0; 1 to 3600 seconds are allowed")]
    #[case("announcements", "0", "`limits.announcements` is 0; 1 to 64 are allowed")]
    #[case("paths", "0", "`limits.paths` is 0; 1 to 20000 are allowed")]
    #[case("paths", "20001", "`limits.paths` is 20001; 1 to 20000 are allowed")]
    #[case("open-pushes", "0", "`limits.open-pushes` is 0; 1 to 1000000 are allowed")]
    #[case("open-paths", "19999", "`limits.open-paths` is 19999; 20000 to 100000000 are allowed")]
    #[case("quarantine", "\"0 B\"", "`limits.quarantine` is 0; ")]
    #[case("free-space", "\"1 MiB\"", "`limits.free-space` is 1048576; ")]
    #[case("memory", "\"1 MiB\"", "`limits.memory` is 1048576; 603979776 to ")]
    #[case("memory", "\"600 MiB\"\nconnections = 100000", "`limits.memory` is 629145600; ")]
    #[case("keep-ended", "\"1h\"", "`limits.keep-ended` is 3600; ")]
    #[case("invite-attempts", "0", "`limits.invite-attempts` is 0; 1 to 1000000 are allowed")]
    #[case("memory", "1024", "invalid type")]
    #[case("quarantine", "\"a lot\"", "`a lot` is not a size")]
    fn a_value_that_makes_no_sense_is_refused_by_name(
        #[case] field: &str,
        #[case] value: &str,
        #[case] words: &str,
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("[limits]\n{field} = {value}\n")).unwrap();
        let error = Config::read(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(&file.path().display().to_string()), "{error}");
        assert!(error.contains(field), "{error}");
    }
}
