//! Formats of what commands print.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tabwriter::TabWriter;

/// Rows of text that are aligned with each other. More would not be printed before they are known.
const PAGE: usize = 500;
/// The pause between two outputs of `--watch`.
const WATCH: Duration = Duration::from_secs(2);

/// How a command prints.
#[derive(Args, Clone, Debug)]
pub struct Printing {
    /// Format of the output.
    #[arg(long, short, default_value = "text")]
    pub output: Output,
    /// Print again every two seconds, until interrupted.
    #[arg(long, short)]
    pub watch: bool,
}

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Text,
    /// A JSON array with an object for each row.
    Json,
    /// The same objects in YAML.
    Yaml,
}

/// A row of a table.
pub trait Row: Serialize {
    /// Headings of the columns.
    const HEADINGS: &'static [&'static str];

    /// Returns a text for each column. An empty one is printed as `-`.
    fn cells(&self) -> Vec<String>;

    /// Returns the lines of the row, each with a text for each column.
    fn lines(&self) -> Vec<Vec<String>> {
        vec![self.cells()]
    }
}

impl Printing {
    /// Prints what `print` prints, once or again and again.
    ///
    /// # Errors
    /// Those of `print`.
    pub fn repeat<E>(&self, mut print: impl FnMut(&Self) -> Result<(), E>) -> Result<(), E> {
        loop {
            print(self)?;
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(WATCH);
            if self.output != Output::Json {
                println!("{}", if self.output == Output::Yaml { "---" } else { "" });
            }
        }
    }
}

/// Writes rows as they come, so that the memory for them does not grow with their number.
pub struct Rows<W: Write> {
    out: W,
    output: Output,
    /// Rows of text that are not written yet.
    page: Vec<Vec<String>>,
    headings: &'static [&'static str],
    is_first: bool,
}

impl<W: Write> Rows<W> {
    /// Begins the output for rows of a type.
    pub fn new<R: Row>(out: W, output: Output) -> Self {
        Self { out, output, page: Vec::new(), headings: R::HEADINGS, is_first: true }
    }

    /// Writes a row.
    ///
    /// # Errors
    /// Those of the output.
    pub fn push<R: Row>(&mut self, row: &R) -> io::Result<()> {
        match self.output {
            Output::Text => {
                self.page.extend(row.lines());
                if self.page.len() >= PAGE { self.write_page() } else { Ok(()) }
            }
            Output::Json => {
                let before = if std::mem::take(&mut self.is_first) { "[\n" } else { ",\n" };
                write!(self.out, "{before}{}", serde_json::to_string(row)?)
            }
            Output::Yaml => {
                self.is_first = false;
                self.out.write_all(yaml(&[row])?.as_bytes())
            }
        }
    }

    /// Ends the output.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<()> {
        match (self.output, self.is_first) {
            (Output::Text, _) => self.write_page()?,
            (Output::Json, true) => writeln!(self.out, "[]")?,
            (Output::Json, false) => writeln!(self.out, "\n]")?,
            (Output::Yaml, true) => writeln!(self.out, "[]")?,
            (Output::Yaml, false) => {}
        }
        self.out.flush()
    }

    fn write_page(&mut self) -> io::Result<()> {
        let is_first = std::mem::take(&mut self.is_first);
        let headings = is_first.then(|| self.headings.iter().map(ToString::to_string).collect());
        let rows = headings.into_iter().chain(self.page.drain(..));
        write_aligned(&mut self.out, rows)
    }
}

/// Writes rows of cells with aligned columns.
///
/// # Errors
/// Those of the output.
pub fn write_aligned(
    out: &mut (impl Write + ?Sized),
    rows: impl Iterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut aligned = TabWriter::new(Vec::new()).padding(2);
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| if cell.is_empty() { "-" } else { cell }).collect();
        writeln!(aligned, "{}", cells.join("\t"))?;
    }
    out.write_all(&aligned.into_inner().map_err(|error| io::Error::other(error.to_string()))?)
}

/// Prints all rows to the standard output.
///
/// # Errors
/// Those of the output.
pub fn print<R: Row>(rows: &[R], output: Output) -> io::Result<()> {
    let mut out = Rows::new::<R>(io::stdout().lock(), output);
    rows.iter().try_for_each(|row| out.push(row))?;
    out.finish()
}

/// Prints one value that has a text of its own.
///
/// # Errors
/// Those of the output.
pub fn print_one<T: Serialize>(
    value: &T,
    output: Output,
    text: impl FnOnce(&T, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = anstream::AutoStream::auto(io::stdout().lock());
    match output {
        Output::Text => text(value, &mut out)?,
        Output::Json => writeln!(out, "{}", serde_json::to_string(value)?)?,
        Output::Yaml => out.write_all(yaml(value)?.as_bytes())?,
    }
    out.flush()
}

/// Joins texts for a cell.
pub fn list<T: ToString>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| text.to_string()).collect::<Vec<_>>().join(", ")
}

fn yaml<T: Serialize>(value: &T) -> io::Result<String> {
    serde_saphyr::to_string(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Example {
        name: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        number: Option<u32>,
    }

    impl Row for Example {
        const HEADINGS: &'static [&'static str] = &["NAME", "NUMBER"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.into(), self.number.map(|number| number.to_string()).unwrap_or_default()]
        }
    }

    fn written(rows: &[Example], output: Output) -> String {
        let mut text = Vec::new();
        let mut out = Rows::new::<Example>(&mut text, output);
        rows.iter().for_each(|row| out.push(row).unwrap());
        out.finish().unwrap();
        String::from_utf8(text).unwrap()
    }

    const ROWS: [Example; 2] =
        [Example { name: "a: b", number: Some(7) }, Example { name: "longer", number: None }];

    #[test]
    fn each_format_has_all_rows() {
        assert_eq!(written(&ROWS, Output::Text), "NAME    NUMBER\na: b    7\nlonger  -\n");
        let json: serde_json::Value = serde_json::from_str(&written(&ROWS, Output::Json)).unwrap();
        assert_eq!(json, serde_json::json!([{ "name": "a: b", "number": 7 }, { "name": "longer" }]));
        let yaml: serde_json::Value = serde_saphyr::from_str(&written(&ROWS, Output::Yaml)).unwrap();
        assert_eq!(yaml, json);
    }

    #[test]
    fn no_rows_are_an_empty_list() {
        assert_eq!(written(&[], Output::Text), "NAME  NUMBER\n");
        assert_eq!(written(&[], Output::Json), "[]\n");
        assert_eq!(written(&[], Output::Yaml), "[]\n");
    }

    #[test]
    fn rows_of_several_pages_have_one_heading() {
        let rows: Vec<_> =
            (0..PAGE as u32 + 1).map(|number| Example { name: "n", number: Some(number) }).collect();
        let text = written(&rows, Output::Text);
        assert_eq!(text.lines().count(), rows.len() + 1);
        assert_eq!(text.matches("NAME").count(), 1);
    }
}
