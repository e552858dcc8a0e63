//! Packages of whole Linux systems, as the table has them.

use anyhow::{Result, ensure};
use packages::Release;
use packages::deb::{self, Deb};
use packages::ipk::Ipk;
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
    for program in &table.programs {
        let Some(agent) = built(&program.name) else { continue };
        let tarball = Tarball { release, processor: &program.name, agent };
        made.push((format!("tarball/{}.tar.gz", tarball.folder()), tarball.build()?));
    }
    for (path, file) in packages::container::context().files() {
        made.push((format!("container/{path}"), file.bytes.clone()));
    }
    Ok(made)
}
