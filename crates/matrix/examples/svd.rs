//! The truncated SVD alone, for tools/bench_embed.py: a memory-map CSR folder (`pmill export
//! --format csr --precision single`) in, singular values and seconds out as JSON.

use std::path::Path;
use std::time::Instant;

use pmill_matrix::bands::{Band, BandStore};
use pmill_matrix::svd::{SvdSettings, randomized_svd};
use pmill_matrix::{MatrixError, npy};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn numbers(folder: &Path, name: &str) -> Outcome<Vec<[u8; 4]>> {
    let bytes = std::fs::read(folder.join(name))?;
    Ok(bytes[npy::HEADER_BYTES..].as_chunks::<4>().0.to_vec())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, rank, oversampling, power_iterations, threads] = &arguments[..] else {
        return Err("usage: svd FOLDER RANK OVERSAMPLING POWER_ITERATIONS THREADS".into());
    };
    let folder = Path::new(folder);
    let row_starts: Vec<u64> = numbers(folder, "indptr.npy")?
        .into_iter()
        .map(|n| u64::from(u32::from_le_bytes(n)))
        .collect();
    let columns: Vec<u32> = numbers(folder, "indices.npy")?
        .into_iter()
        .map(u32::from_le_bytes)
        .collect();
    let values: Vec<f32> = numbers(folder, "data.npy")?
        .into_iter()
        .map(f32::from_le_bytes)
        .collect();
    let rows = row_starts.len() - 1;
    let band = Band {
        first: 0,
        row_starts,
        columns,
        values,
    };
    let mut store = BandStore::new(rows, rows, u64::MAX);
    store.push(band, folder)?;
    let settings = SvdSettings {
        rank: rank.parse()?,
        oversampling: oversampling.parse()?,
        power_iterations: power_iterations.parse()?,
        seed: 1,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse()?)
        .build()?;
    let began = Instant::now();
    // The matrix is symmetric, so that it is its own transpose.
    let step = || Ok::<(), MatrixError>(());
    let svd = pool.install(|| randomized_svd(&store, &store, &settings, step))?;
    let report = serde_json::json!({
        "seconds": began.elapsed().as_secs_f64(),
        "singular_values": svd.singular_values,
    });
    std::io::Write::write_all(&mut std::io::stdout(), format!("{report}\n").as_bytes())?;
    Ok(())
}
