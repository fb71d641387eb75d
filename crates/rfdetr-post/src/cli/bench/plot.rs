//! Bars as an SVG picture: one group a case, lengths on a logarithmic scale.

use std::fmt::Write;

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What it stands for.
    pub label: String,
    /// How long it took.
    pub us: f64,
    /// Ours are drawn in another color than others'.
    pub is_ours: bool,
}

/// The bars of one case.
#[derive(Debug, Clone)]
pub struct Group {
    /// The case.
    pub name: String,
    /// Its bars.
    pub bars: Vec<Bar>,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 78.0;
const ROW: f64 = 18.0;
const GAP: f64 = 30.0;

/// The picture. `subtitle` says where and when.
pub fn svg(title: &str, subtitle: &str, groups: &[Group]) -> String {
    let times: Vec<f64> =
        groups.iter().flat_map(|group| &group.bars).map(|bar| bar.us).filter(|us| *us > 0.0).collect();
    let decade = |us: f64| us.max(1e-3).log10();
    let low = times.iter().copied().map(decade).fold(f64::INFINITY, f64::min).floor();
    let high = times.iter().copied().map(decade).fold(f64::NEG_INFINITY, f64::max).ceil();
    let (low, high) = if times.is_empty() { (0.0, 1.0) } else { (low, high.max(low + 1.0)) };
    let x = |us: f64| LEFT + (decade(us).clamp(low, high) - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let height = TOP + groups.iter().map(|group| GAP + ROW * group.bars.len() as f64).sum::<f64>() + 20.0;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut put = |text: std::fmt::Arguments<'_>| {
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">"
    ));
    put(format_args!("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"));
    put(format_args!("<text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{}</text>", escape(title)));
    put(format_args!("<text x=\"16\" y=\"46\" fill=\"#555555\">{}</text>", escape(subtitle)));
    for exponent in low as i32..=high as i32 {
        let us = 10f64.powi(exponent);
        let at = x(us);
        put(format_args!(
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" fill=\"#777777\" text-anchor=\"middle\">{}</text>",
            height - 14.0,
            TOP - 8.0,
            show(us)
        ));
    }
    let mut y = TOP;
    for group in groups {
        y += GAP;
        put(format_args!("<text x=\"16\" y=\"{:.1}\" font-weight=\"bold\">{}</text>", y - 8.0, escape(&group.name)));
        for bar in &group.bars {
            let end = x(bar.us);
            let color = if bar.is_ours { "#1f6fb2" } else { "#b0b7bf" };
            put(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 8.0,
                y + 12.0,
                escape(&bar.label),
                y + 2.0,
                (end - LEFT).max(1.0),
                ROW - 4.0,
                end + 5.0,
                y + 12.0,
                show(bar.us)
            ));
            y += ROW;
        }
    }
    put(format_args!("</svg>"));
    out
}

/// A time with its unit, in three digits.
pub fn show(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1e3 => (us, "µs"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let digits = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_three_digits() {
        let shown = [0.5, 9.996, 12.34, 250.0, 999.9, 1500.0, 2.5e6].map(show);
        assert_eq!(shown, ["0.5 µs", "10 µs", "12.3 µs", "250 µs", "1000 µs", "1.5 ms", "2.5 s"]);
    }

    #[test]
    fn a_picture_holds_its_bars() {
        let bar = |label: &str, us, is_ours| Bar { label: label.to_owned(), us, is_ours };
        let group = Group { name: "a < b".to_owned(), bars: vec![bar("ours", 20.0, true), bar("torch", 9e4, false)] };
        let picture = svg("title", "machine & date", &[group]);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        for text in ["a &lt; b", "machine &amp; date", ">20 µs<", ">90 ms<", "#1f6fb2", "#b0b7bf"] {
            assert!(picture.contains(text), "{text} is missing");
        }
        assert!(svg("nothing", "", &[]).contains("nothing"));
    }
}
