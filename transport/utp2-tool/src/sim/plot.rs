//! Rate, delay and loss over time as one SVG to look at.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use utp2_sim::{Outcome, Sample, Scenario};

const SIZE: (u32, u32) = (1100, 900);
/// Told apart by people who see colours differently.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];
/// More lines than this are not worth a legend.
const LEGEND_MAX: usize = 8;

struct Curve {
    name: String,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) fn draw(
    scenario: &Scenario,
    samples: &[Sample],
    outcome: &Outcome,
) -> Result<String, anyhow::Error> {
    let mut svg = String::new();
    render(&mut svg, scenario, samples, outcome).map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(svg)
}

fn render(
    svg: &mut String,
    scenario: &Scenario,
    samples: &[Sample],
    outcome: &Outcome,
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "{} of the ceiling ({:.1} Mbit/s) in the steady part, {} of the whole run",
        percent(outcome.utilization),
        outcome.ceiling * 8e-6,
        percent(outcome.utilization_whole)
    );
    let root = root.titled(&title, ("sans-serif", 20))?;
    let areas = root.split_evenly((3, 1));
    panel(&areas[0], "Mbit/s", &rates(scenario, samples))?;
    panel(&areas[1], "ms", &delays(scenario, samples))?;
    panel(&areas[2], "% lost", &losses(samples))?;
    root.present()?;
    Ok(())
}

fn percent(x: f64) -> String {
    format!("{:.1} %", x * 100.0)
}

fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

fn rates(scenario: &Scenario, samples: &[Sample]) -> Vec<Curve> {
    let mut curves = Vec::new();
    for (i, flow) in scenario.flows.iter().enumerate() {
        let points = samples.windows(2).map(|w| {
            let bytes = w[1].flows[i].0 - w[0].flows[i].0;
            let seconds = (w[1].at - w[0].at).as_secs_f64();
            (w[1].at.as_secs_f64(), bytes as f64 * 8e-6 / seconds.max(1e-9))
        });
        let name = format!("flow {i} ({}): arrived", flow.protocol.name());
        curves.push(Curve { name, colour: colour(2 * i), points: points.collect() });
    }
    if let [_] = scenario.flows.as_slice() {
        let points = samples.iter().map(|s| (s.at.as_secs_f64(), s.flows[0].1.rate as f64 * 8e-6));
        curves.push(Curve { name: "sending rate".into(), colour: colour(1), points: points.collect() });
    }
    let points = samples.iter().map(|s| (s.at.as_secs_f64(), scenario.ceiling_over(s.at, s.at) * 8e-6));
    curves.push(Curve { name: "ceiling".into(), colour: colour(6), points: points.collect() });
    curves
}

fn delays(scenario: &Scenario, samples: &[Sample]) -> Vec<Curve> {
    let queue =
        samples.iter().map(|s| (s.at.as_secs_f64(), s.queued_bytes as f64 * 8e3 / s.rate_bps.max(1) as f64));
    let mut curves = vec![Curve { name: "in the queue".into(), colour: colour(1), points: queue.collect() }];
    for i in 0..scenario.flows.len() {
        let rtt = samples.iter().map(|s| (s.at.as_secs_f64(), s.flows[i].1.rtt.as_secs_f64() * 1e3));
        let name = format!("flow {i}: round trip");
        curves.push(Curve { name, colour: colour(2 * i), points: rtt.collect() });
    }
    curves
}

fn losses(samples: &[Sample]) -> Vec<Curve> {
    let share = |of: fn(&Sample) -> u64| {
        samples
            .windows(2)
            .map(|w| {
                let sent = |s: &Sample| s.flows.iter().map(|f| f.1.sent_packets).sum::<u64>();
                let all = sent(&w[1]).saturating_sub(sent(&w[0])).max(1);
                (w[1].at.as_secs_f64(), (of(&w[1]) - of(&w[0])) as f64 * 100.0 / all as f64)
            })
            .collect()
    };
    vec![
        Curve { name: "by chance".into(), colour: colour(6), points: share(|s| s.chance_losses) },
        Curve { name: "of congestion".into(), colour: colour(1), points: share(|s| s.congestion_drops) },
    ]
}

fn panel(area: &Area<'_>, unit: &str, curves: &[Curve]) -> Result<(), Box<dyn Error>> {
    let points = || curves.iter().flat_map(|c| &c.points);
    let until = points().map(|p| p.0).fold(0.1, f64::max);
    let mut values: Vec<f64> = points().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    // A few wild points at the start shall not flatten all the rest.
    let usual = values.get(values.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0.0);
    let top = (usual * 1.25).min(values.last().copied().unwrap_or(0.0) * 1.05).max(0.1);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..until, 0.0..top)?;
    chart.configure_mesh().x_desc("s").y_desc(unit).light_line_style(WHITE).draw()?;
    for curve in curves {
        let style = curve.colour.stroke_width(1);
        let clipped = curve.points.iter().map(|&(x, y)| (x, y.min(top)));
        let colour = curve.colour;
        let drawn = chart.draw_series(LineSeries::new(clipped, style))?;
        if curves.len() <= LEGEND_MAX {
            drawn
                .label(curve.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
    }
    if curves.len() <= LEGEND_MAX {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_drawing_has_its_lines_and_says_what_they_are() {
        let s = Scenario::new(20_000_000, Duration::from_millis(20), 0.01, 0).for_seconds(2);
        let mut samples = Vec::new();
        let outcome = s.run_sampled(Duration::from_millis(50), |sample| samples.push(sample.clone()));
        let svg = draw(&s, &samples, &outcome).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.matches("<polyline").count() >= 6, "{}", svg.len());
        assert!(svg.contains("of congestion") && svg.contains("flow 0 (utp2): arrived"));
        // Nothing to draw is no reason to fail.
        assert!(draw(&s, &[], &outcome).is_ok());
    }
}
