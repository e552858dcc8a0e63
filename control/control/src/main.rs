//! `flotilla`: the control service and the operator's command line. See `control::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    control::cli::main()
}
