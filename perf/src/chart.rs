//! Line charts as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// One line of a chart.
#[derive(Debug)]
pub(crate) struct Line {
    /// What the legend says.
    pub(crate) name: String,
    /// Points, x rising.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart. The x axis is by powers of two when it starts at 1 and spans more than 8.
#[derive(Debug)]
pub(crate) struct Chart {
    /// Above the chart.
    pub(crate) title: String,
    /// Below the x axis.
    pub(crate) x: String,
    /// Beside the y axis.
    pub(crate) y: String,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

/// Colours that stay apart for colour-blind eyes (Okabe and Ito), and for raw a grey.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

const SIZE: (u32, u32) = (480, 340);

fn colour(name: &str, index: usize) -> RGBColor {
    if name == "raw" {
        RGBColor(130, 130, 130)
    } else {
        COLOURS[index % COLOURS.len()]
    }
}

/// A number with few digits: 12k, 1.5, 0.25.
fn short(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value >= 10.0 || (value - value.round()).abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Whether most lines end lower than they start: then there is room at the upper right.
fn falls(chart: &Chart) -> bool {
    let falling = |line: &&Line| match (line.points.first(), line.points.last()) {
        (Some(first), Some(last)) => last.1 < first.1,
        _ => false,
    };
    chart.lines.iter().filter(falling).count() * 2 > chart.lines.len()
}

/// Labels of an x axis that counts.
fn chart_points(chart: &Chart) -> usize {
    let most = chart.lines.iter().map(|line| line.points.len()).max();
    most.unwrap_or(2).clamp(2, 10)
}

/// Draws a chart.
///
/// # Errors
/// What the plotting library says.
pub(crate) fn svg(chart: &Chart) -> Result<String> {
    let mut text = String::new();
    draw(chart, &mut text).map_err(|e| anyhow!("chart {}: {e}", chart.title))?;
    Ok(text)
}

fn draw(chart: &Chart, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let x_max = points().map(|p| p.0).fold(1.0, f64::max);
    let y_max = points().map(|p| p.1).fold(0.0, f64::max).max(1e-9) * 1.1;
    let doubling = x_max > 8.0;
    let place = |x: f64| if doubling { x.log2() } else { x };
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let first = if doubling { 0.0 } else { 1.0 };
    let mut context = ChartBuilder::on(&root)
        .caption(&chart.title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(first..place(x_max).max(first + 1.0), 0.0..y_max)?;
    context
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(if doubling { 9 } else { chart_points(chart) })
        .x_label_formatter(&|x| short(if doubling { x.exp2() } else { *x }))
        .y_label_formatter(&|y| short(*y))
        .x_desc(&chart.x)
        .y_desc(&chart.y)
        .label_style(("sans-serif", 15))
        .draw()?;
    let mut index = 0;
    for line in &chart.lines {
        let colour = colour(&line.name, index);
        index += usize::from(line.name != "raw");
        let points: Vec<(f64, f64)> = line.points.iter().map(|p| (place(p.0), p.1)).collect();
        context
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        context.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?;
    }
    context
        .configure_series_labels()
        .position(if falls(chart) {
            SeriesLabelPosition::UpperRight
        } else {
            SeriesLabelPosition::UpperLeft
        })
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Chart, Line, svg};

    #[test]
    fn a_chart_names_its_lines_and_axes() {
        let chart = Chart {
            title: "t".to_owned(),
            x: "depth".to_owned(),
            y: "IOPS".to_owned(),
            lines: vec![Line {
                name: "raw".to_owned(),
                points: vec![(1.0, 10.0), (64.0, 20_000.0)],
            }],
        };
        let text = svg(&chart).expect("drawn");
        for part in ["<svg", "raw", "depth", "IOPS", "20k"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
