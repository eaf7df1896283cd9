//! Ratios as bars: for each part that compares ways, a picture with a group of bars for each of its tables.

use std::{collections::BTreeMap, error::Error, path::Path};

use plotters::prelude::*;
use serde_json::Value;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 420;
const COLOURS: [RGBColor; 5] = [
    RGBColor(160, 160, 160),
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
];

/// What a part found: by way, in the order of their rows, the ratio in each table.
#[derive(Debug, Default)]
struct Part {
    tables: Vec<String>,
    ways: Vec<(String, Vec<f64>)>,
}

/// Draws `PART.svg` into a folder for each part whose rows have a `ratio`.
///
/// # Errors
/// A folder that can't be written to.
pub(crate) fn draw(found: &[Value], folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut parts: BTreeMap<&str, Part> = BTreeMap::new();
    for table in found {
        let (Some(part), Some(title), Some(rows)) =
            (table["part"].as_str(), table["table"].as_str(), table["rows"].as_array())
        else {
            continue;
        };
        let ratios: Vec<(&str, f64)> = rows.iter().filter_map(ratio).collect();
        if ratios.is_empty() {
            continue;
        }
        let part = parts.entry(part).or_default();
        part.tables.push(title.to_owned());
        for (way, ratio) in ratios {
            match part.ways.iter_mut().find(|(known, _)| known == way) {
                Some((_, of)) => of.push(ratio),
                None => part.ways.push((way.to_owned(), vec![ratio])),
            }
        }
    }
    for (name, part) in parts {
        bars(&part, &folder.join(format!("{name}.svg")))?;
    }
    Ok(())
}

/// The way that a row is about, and its ratio.
fn ratio(row: &Value) -> Option<(&str, f64)> {
    let way = row.get("way").or_else(|| row.get("shop"))?;
    Some((way.as_str()?, row.get("ratio")?.as_f64()?))
}

fn bars(part: &Part, path: &Path) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let highest = part.ways.iter().flat_map(|(_, ratios)| ratios).copied().fold(1.0, f64::max) * 1.1;
    let groups = part.tables.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..groups, 0.0..highest)?;
    let title = |at: &f64| part.tables.get(*at as usize).filter(|_| at.fract() == 0.5).cloned().unwrap_or_default();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(part.tables.len() * 2 + 1)
        .x_label_formatter(&title)
        .y_desc("ratio to the first")
        .draw()?;
    let width = 0.8 / part.ways.len() as f64;
    for (number, (way, ratios)) in part.ways.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let bars = ratios.iter().enumerate().map(|(group, ratio)| {
            let left = group as f64 + 0.1 + number as f64 * width;
            Rectangle::new([(left, 0.0), (left + width * 0.92, *ratio)], colour.filled())
        });
        chart
            .draw_series(bars)?
            .label(way.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}
