//! `pmill snapshot merge --cluster URL`: slices of the merge are units that executors run.

use std::path::{Path, PathBuf};

use clap::Args;
use pmill_engine::job::distributed::AverageDrive;
use pmill_engine::memory::ByteSize;
use pmill_snapshot::{MergeReport, MergeSettings};
#[cfg(feature = "serve")]
use {
    crate::outcome::chain,
    pmill_cluster::{ClusterRunner, Patience},
    pmill_engine::Kind,
    pmill_engine::progress::{Quiet, StopFlag},
    std::time::Duration,
};

use crate::cluster::ClusterArgs;
use crate::limits::Global;
use crate::outcome::Failure;
use crate::progress::{Bar, stop_flag};

/// Seconds that a unit may take.
const LIMIT_SECONDS: u64 = 3600;
/// Times that a unit may fail, or end its process.
const ATTEMPTS: u32 = 5;
/// Bytes that a unit of the service's merges reads.
#[cfg(feature = "serve")]
const UNIT_BYTES: u64 = 256 << 20;
/// How long nothing may come from the cluster before the service puts a merge off.
#[cfg(feature = "serve")]
const PATIENCE: Duration = Duration::from_secs(600);

/// Flags of a merge that can run on a cluster.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Cluster")]
pub struct MergeClusterArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Bytes that a unit reads from all snapshots together
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    unit_size: ByteSize,
    /// Folder that all processes see, for the plan and what units leave [default: beside the output]
    #[arg(long, value_name = "FOLDER")]
    units_folder: Option<PathBuf>,
}

impl MergeClusterArgs {
    /// Whether a cluster was named.
    pub fn is_asked_for(&self) -> bool {
        self.cluster.is_asked_for()
    }

    /// Merges on the cluster.
    pub fn merge(
        &self,
        inputs: &[PathBuf],
        output: &Path,
        settings: &MergeSettings,
        global: &Global,
    ) -> Result<MergeReport, Failure> {
        let bar = Bar::new(global);
        let mut runner = self.cluster.runner(ATTEMPTS, &bar)?;
        let drive = AverageDrive {
            inputs,
            output,
            settings,
            expected: &[],
            units_folder: self.units_folder.as_deref(),
            unit_bytes: self.unit_size.0,
            limit_seconds: LIMIT_SECONDS,
            most_attempts: ATTEMPTS,
            progress: &bar,
            stop: &stop_flag(),
        };
        let result = drive.run(&mut runner);
        bar.clear();
        Ok(result?)
    }
}

/// Runs the merges of the merge service on a cluster.
#[cfg(feature = "serve")]
#[derive(Debug)]
pub struct OnCluster {
    /// The scheduler's URL.
    pub url: String,
    /// How the service shows who it is.
    pub security: pmill_cluster::ClientSecurity,
}

#[cfg(feature = "serve")]
impl pmill_serve::snapshots::Merger for OnCluster {
    fn merge(
        &self,
        job: pmill_serve::snapshots::Job<'_>,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<MergeReport, pmill_serve::snapshots::MergeServiceError> {
        use pmill_serve::snapshots::MergeServiceError;
        let failed = |kind: Kind, what: String| match kind {
            Kind::User => MergeServiceError::Invalid { what },
            Kind::NotNow => MergeServiceError::NotNow { what },
            Kind::Bug => MergeServiceError::Internal { what },
        };
        let patience = Patience {
            nothing: PATIENCE,
            attempts: ATTEMPTS,
        };
        let mut runner = ClusterRunner::connect(&self.url, &self.security, patience, &Quiet)
            .map_err(|error| failed(error.kind(), chain(&error)))?;
        let (stop, ended) = (StopFlag::default(), StopFlag::default());
        let drive = AverageDrive {
            inputs: job.inputs,
            output: job.output,
            settings: job.settings,
            expected: job.digests,
            units_folder: Some(job.folder),
            unit_bytes: UNIT_BYTES,
            limit_seconds: LIMIT_SECONDS,
            most_attempts: ATTEMPTS,
            progress: &Quiet,
            stop: &stop,
        };
        let merged = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.is_set() {
                    if !go_on() {
                        stop.set();
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let merged = drive.run(&mut runner);
            ended.set();
            merged
        });
        merged.map_err(|error| failed(error.kind(), chain(&error)))
    }
}
