//! The chart of a figure: a bar for each contestant, and a line for its quartiles.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::bench::statistics::short;

const WIDTH: u32 = 760;
const ROW: u32 = 34;
const MARGIN: u32 = 70;
const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const OTHERS: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);

/// Medians and quartiles of a figure.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) figure: String,
    pub(crate) unit: &'static str,
    pub(crate) bars: Vec<Bar>,
}

/// A contestant's median and quartiles.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) median: f64,
    pub(crate) quartiles: (f64, f64),
}

impl Chart {
    /// Writes `<figure>.svg`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let file = folder.join(format!("{}.svg", self.figure));
        self.draw(&file).map_err(|error| anyhow!("{error}"))
    }

    fn draw(&self, file: &Path) -> Result<(), Box<dyn std::error::Error + '_>> {
        let rows = u32::try_from(self.bars.len())?;
        let area = SVGBackend::new(file, (WIDTH, rows * ROW + MARGIN)).into_drawing_area();
        area.fill(&WHITE)?;
        let largest = self.bars.iter().map(|bar| bar.quartiles.1).fold(f64::MIN_POSITIVE, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("{}, {}", self.figure, self.unit), ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(210)
            // Leave room for the numbers beside the bars.
            .build_cartesian_2d(0.0..largest * 1.15, (0..rows - 1).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_label_formatter(&|segment| match segment {
                SegmentValue::CenterOf(row) => self.name_at(rows, *row),
                _ => String::new(),
            })
            .label_style(("sans-serif", 12))
            .draw()?;
        for (index, bar) in self.bars.iter().enumerate() {
            let row = rows - 1 - u32::try_from(index)?;
            let colour = if bar.name.starts_with("podwire") { OURS } else { OTHERS };
            let corners = [(0.0, SegmentValue::Exact(row)), (bar.median, SegmentValue::Exact(row + 1))];
            let mut rectangle = Rectangle::new(corners, colour.filled());
            rectangle.set_margin(5, 5, 0, 0);
            chart.draw_series([rectangle])?;
            let centre = SegmentValue::CenterOf(row);
            let quartiles = [bar.quartiles.0, bar.quartiles.1].map(|value| (value, centre.clone()));
            chart.draw_series([PathElement::new(quartiles, BLACK)])?;
            let label = Text::new(
                format!("  {}", short(bar.median)),
                (bar.quartiles.1.max(bar.median), centre),
                ("sans-serif", 12),
            );
            chart.draw_series([label])?;
        }
        area.present()?;
        Ok(())
    }

    /// Returns the name of the contestant in a row. Rows are counted from below.
    fn name_at(&self, rows: u32, row: u32) -> String {
        let index = rows.checked_sub(row + 1).map(|index| index as usize);
        index.and_then(|index| self.bars.get(index)).map(|bar| bar.name.clone()).unwrap_or_default()
    }
}
