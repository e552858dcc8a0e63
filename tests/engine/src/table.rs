//! What is printed: a line of JSON for each result, or a table of all.

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

/// One result.
pub(crate) trait Row: Serialize {
    /// The columns' names.
    const HEADER: &'static [&'static str];

    /// As people read it, a text for each column.
    fn cells(&self) -> Vec<String>;
}

/// Results as they come.
pub(crate) struct Results<R> {
    json: bool,
    rows: Vec<R>,
}

impl<R: Row> Results<R> {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, rows: Vec::new() }
    }

    /// Takes a result in; with JSON it is printed at once.
    pub(crate) fn add(&mut self, row: R) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(&row)?);
        } else {
            eprintln!("{}", row.cells().join(" · "));
        }
        self.rows.push(row);
        Ok(())
    }

    /// Prints the table unless JSON was wanted.
    pub(crate) fn print(&self) {
        if self.json {
            return;
        }
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header(R::HEADER);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        println!("{table}");
    }
}

/// Two or three digits behind the point are all that is known.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}
