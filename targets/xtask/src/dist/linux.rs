//! Packages of whole Linux systems and of QNAP boxes, as the table has them.

use anyhow::{Context as _, Result, ensure};
use packages::Release;
use packages::deb::{self, Deb};
use packages::ipk::Ipk;
use packages::qpkg::{self, PROCESSORS, Qpkg};
use packages::rpm::{self, Rpm};
use packages::tarball::Tarball;

use super::table::Table;

/// Those that the programs `built` are enough for: where each lies below the output, and its bytes.
pub(super) fn packages<'a>(
    table: &Table,
    release: Release<'_>,
    built: impl Fn(&str) -> Option<&'a [u8]>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut made = Vec::new();
    for row in &table.deb {
        let Some(agent) = built(&row.program) else { continue };
        let deb = Deb { release, architecture: &row.architecture, agent };
        let bytes = deb.build()?;
        let faults = deb::faults(&bytes, &row.architecture)?;
        ensure!(faults.is_empty(), "{}: {}", deb.file_name(), faults.join("; "));
        made.push((format!("debian/{}", deb.file_name()), bytes));
    }
    for row in &table.rpm {
        let Some(agent) = built(&row.program) else { continue };
        let rpm = Rpm { release, architecture: &row.architecture, agent };
        let bytes = rpm.build()?;
        let faults = rpm::faults(&bytes, &row.architecture);
        ensure!(faults.is_empty(), "{}: {}", rpm.file_name(), faults.join("; "));
        made.push((format!("rpm/{}", rpm.file_name()), bytes));
    }
    for row in &table.ipk {
        let Some(agent) = built(&row.program) else { continue };
        let ipk = Ipk { release, architecture: &row.architecture, agent };
        made.push((format!("openwrt/{}", ipk.file_name()), ipk.build()?));
    }
    for row in &table.qpkg {
        let Some(agent) = built(&row.program) else { continue };
        let processor = PROCESSORS.into_iter().find(|p| p.name == row.architecture);
        let processor = processor.with_context(|| format!("QNAP has no {}", row.architecture))?;
        let qpkg = Qpkg { release, processor, agent };
        let bytes = qpkg.build()?;
        let faults = qpkg::faults(&bytes, processor);
        ensure!(faults.is_empty(), "{}: {}", qpkg.file_name(), faults.join("; "));
        made.push((format!("qnap/{}", qpkg.file_name()), bytes));
    }
    for program in table.programs.iter().filter(|program| !program.service) {
        let Some(agent) = built(&program.name) else { continue };
        let tarball = Tarball { release, processor: &program.name, agent };
        made.push((format!("tarball/{}.tar.gz", tarball.folder()), tarball.build()?));
    }
    for (path, file) in packages::container::context().files() {
        made.push((format!("container/{path}"), file.bytes.clone()));
    }
    Ok(made)
}
