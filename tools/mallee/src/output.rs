//! What commands answer goes to standard output, what they tell meanwhile to standard error.

use std::fmt::Arguments;
use std::io::Write;

/// Writes a line. A reader that went away (`| head`) ends the command quietly, as it does any other.
pub fn line(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").is_err() {
        std::process::exit(0);
    }
}

macro_rules! out {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use out;
