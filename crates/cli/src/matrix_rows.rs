//! Where a table's rows come from: read in this process, or made by a cluster.

use pmill_engine::EngineError;
use pmill_engine::progress::{Progress, StopFlag};
use pmill_engine::rows::{Orientation, RowBand, Survey, TableRows, Value};

use crate::outcome::Failure;

#[cfg(feature = "cluster")]
use crate::cluster::MadeRows;

/// Flags of commands whose rows a cluster can make.
#[derive(clap::Args, Debug)]
pub struct RowsArgs {
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    units: crate::units::CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

/// The rows of a table's matrix.
pub enum MatrixSource<'a> {
    /// This process reads the table.
    Here {
        table: &'a TableRows,
        value: &'a Value,
        survey: Survey,
    },
    /// Units of a cluster have made them.
    #[cfg(feature = "cluster")]
    Made(MadeRows),
}

impl<'a> MatrixSource<'a> {
    /// Reads the table once, or has a cluster make the rows.
    pub fn open(
        args: &RowsArgs,
        table: &'a TableRows,
        value: &'a Value,
        orientations: &[Orientation],
        progress: &'a crate::progress::Bar,
        stop: &StopFlag,
    ) -> Result<Self, Failure> {
        #[cfg(feature = "cluster")]
        if args.cluster.is_asked_for() {
            let matrix = (table, value, orientations);
            let made = args.cluster.rows(matrix, &args.units, progress, stop)?;
            return Ok(Self::Made(made));
        }
        let _ = (args, orientations);
        Ok(Self::Here {
            survey: table.survey(progress, stop)?,
            table,
            value,
        })
    }

    /// Lengths and sums of the table's rows.
    pub fn survey(&self) -> &Survey {
        match self {
            Self::Here { survey, .. } => survey,
            #[cfg(feature = "cluster")]
            Self::Made(made) => made.rows.survey(),
        }
    }

    /// As [`TableRows::bands`].
    pub fn bands<E: From<EngineError>>(
        &self,
        orientation: Orientation,
        band_bytes: u64,
        progress: &dyn Progress,
        stop: &StopFlag,
        each: impl FnMut(RowBand) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Here {
                table,
                value,
                survey,
            } => table.bands(survey, value, orientation, band_bytes, progress, stop, each),
            #[cfg(feature = "cluster")]
            Self::Made(made) => made
                .rows
                .bands(orientation, band_bytes, progress, stop, each),
        }
    }

    /// The rows have been used: what a cluster left of them goes away.
    pub fn close(self) {
        #[cfg(feature = "cluster")]
        if let Self::Made(made) = self {
            made.rows.close();
        }
    }
}
