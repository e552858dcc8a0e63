//! What of a manifest is fetched before the rest: patterns of the job become classes of blocks (`edge-agent/PROTOCOL.md`
//! §2.11).

use folder_index::{Priorities, RulesError};
use rustix::io::Errno;
use sync_core::BlockMap;

use super::manifest::ManifestFile;

/// A folder on the way to an entry, and how urgent it is.
struct Above {
    path: Vec<u8>,
    class: Option<usize>,
}

/// The blocks that each of the patterns says are urgent, the most urgent first. What is in a folder is as urgent as the
/// folder at least.
///
/// # Errors
/// If the manifest cannot be read; inside, if a pattern is none.
pub(crate) fn urgent(
    manifest: &ManifestFile,
    patterns: &[String],
) -> Result<Result<Vec<BlockMap>, RulesError>, Errno> {
    let priorities = match Priorities::new(patterns) {
        Ok(_) if patterns.is_empty() => return Ok(Ok(Vec::new())),
        Ok(priorities) => priorities,
        Err(error) => return Ok(Err(error)),
    };
    let mut classes = vec![BlockMap::new(manifest.blocks()); patterns.len()];
    let mut above: Vec<Above> = Vec::new();
    for page in 0..manifest.pages() {
        let page = manifest.page(page)?;
        for (entry, e) in page.entries().filter(|(_, e)| !e.path.is_empty()) {
            while above.last().is_some_and(|folder| !is_below(&e.path, &folder.path)) {
                above.pop();
            }
            let inherited = above.last().and_then(|folder| folder.class);
            let own = priorities.of(&e.path, e.is_folder());
            let class = inherited.into_iter().chain(own).min();
            if e.is_folder() {
                above.push(Above { path: e.path.clone(), class });
            } else if let Some(class) = class {
                classes[class].insert_range(page.blocks_of_entry(entry));
            }
        }
    }
    Ok(Ok(classes))
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}
