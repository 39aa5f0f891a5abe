//! Is what is there sound?

use cairn_metadata::store::Store;

use crate::Failure;
use crate::measure::Figures;

/// Checks the whole namespace and says how far it is.
pub fn check(store: &dyn Store) -> Result<Figures, Failure> {
    let mut wrong = Vec::new();
    let mut time_ns = 0;
    store.read(&mut |view| {
        wrong = cairn_metadata::check::check(view)?;
        time_ns = cairn_metadata::meta(view)?.map_or(0, |meta| meta.time_ns);
        Ok(())
    })?;
    for what in wrong.iter().take(5) {
        eprintln!("  {what}");
    }
    let mut figures = Figures::default();
    figures.add("wrong", wrong.len() as f64);
    figures.add("time", time_ns as f64);
    Ok(figures)
}
