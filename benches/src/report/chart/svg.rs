//! A picture in the making: SVG with one style sheet, for light and for dark pages.
//!
//! What a shape looks like is said by its class only, so that the style sheet can answer
//! `prefers-color-scheme`; the surface is painted, so that text can be read on any page. No
//! colour stands alone: targets also differ by dash and by marker, and numbers are written out.

use std::fmt::{self, Write as _};

/// How many colours there are; more series than that begin anew.
pub(super) const COLOURS: usize = 9;
/// Width of every picture.
pub(super) const WIDTH: f64 = 760.0;
/// Left and right margin of every picture.
pub(super) const MARGIN: f64 = 20.0;

/// Colours of series on a light and on a dark surface. Their order keeps neighbours apart for
/// people who see few colours.
const SERIES: [(&str, &str); COLOURS] = [
    ("#2a78d6", "#3987e5"),
    ("#eb6834", "#d95926"),
    ("#1baf7a", "#199e70"),
    ("#eda100", "#c98500"),
    ("#e87ba4", "#d55181"),
    ("#008300", "#2fa52f"),
    ("#4a3aa7", "#9085e9"),
    ("#e34948", "#e66767"),
    ("#8a8880", "#a3a198"),
];
const DASHES: [&str; 4] = ["none", "7 3", "2 3", "9 3 2 3"];

/// Surface, text, quiet text, grid: light and dark.
const PAGE: [(&str, &str, &str); 4] = [
    (".surface{fill:COLOUR}.seam{stroke:COLOUR}", "#fcfcfb", "#1a1a19"),
    (".ink{fill:COLOUR}.mark{stroke:COLOUR}", "#0b0b0b", "#ffffff"),
    (".quiet{fill:COLOUR}.axis{stroke:COLOUR}", "#52514e", "#c3c2b7"),
    (".grid{stroke:COLOUR}", "#e1e0d9", "#383835"),
];

/// Where a text is held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that is being drawn.
#[derive(Debug)]
pub(super) struct Svg {
    title: String,
    about: String,
    body: String,
}

impl Svg {
    /// `about` says in words what the picture shows, for who cannot see it.
    pub(super) fn new(title: &str, about: &str) -> Self {
        Self { title: title.to_owned(), about: about.to_owned(), body: String::new() }
    }

    /// A text of 12 pixels.
    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y) = (short(at.0), short(at.1));
        let text = Escaped(text);
        self.put(format_args!(
            r#"<text x="{x}" y="{y}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        ));
    }

    /// A rectangle; `told` is what a pointer that rests on it shows.
    pub(super) fn rect(&mut self, at: (f64, f64), size: (f64, f64), class: &str, told: &str) {
        let (x, y, width, height) = (short(at.0), short(at.1), short(size.0), short(size.1));
        let told = Escaped(told);
        self.put(format_args!(
            r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{class}"><title>{told}</title></rect>"#
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let (x1, y1, x2, y2) = (short(from.0), short(from.1), short(to.0), short(to.1));
        self.put(format_args!(
            r#"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{class}"/>"#
        ));
    }

    /// A line through `points`.
    pub(super) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let space = if path.is_empty() { "" } else { " " };
            write!(path, "{space}{},{}", short(*x), short(*y)).ok();
        }
        self.put(format_args!(r#"<polyline points="{path}" class="{class}"/>"#));
    }

    /// The marker of series `index`: a shape of its own, so that colour does not stand alone.
    pub(super) fn marker(&mut self, (x, y): (f64, f64), index: usize, told: &str) {
        let class = format!("fill{} seam", index % COLOURS);
        let shape = match index % 4 {
            0 => format!(r#"circle cx="{}" cy="{}" r="5""#, short(x), short(y)),
            1 => format!(
                r#"rect x="{}" y="{}" width="9" height="9""#,
                short(x - 4.5),
                short(y - 4.5)
            ),
            2 => polygon(&[(x, y - 6.0), (x + 6.0, y + 5.0), (x - 6.0, y + 5.0)]),
            _ => polygon(&[(x, y - 6.0), (x + 6.0, y), (x, y + 6.0), (x - 6.0, y)]),
        };
        let name = shape.split(' ').next().unwrap_or_default();
        let told = Escaped(told);
        self.put(format_args!(r#"<{shape} class="{class}"><title>{told}</title></{name}>"#));
    }

    /// The whole file, `height` pixels high.
    pub(super) fn finish(self, height: f64) -> String {
        let (title, about, style) = (Escaped(&self.title), Escaped(&self.about), style());
        let (width, height) = (short(WIDTH), short(height));
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="title about">
<title id="title">{title}</title>
<desc id="about">{about}</desc>
<style>{style}</style>
<rect width="{width}" height="{height}" class="surface"/>
{}</svg>
"#,
            self.body
        )
    }

    fn put(&mut self, element: fmt::Arguments<'_>) {
        // Writing to memory cannot fail.
        writeln!(self.body, "{element}").ok();
    }
}

fn polygon(points: &[(f64, f64)]) -> String {
    let corners: Vec<_> =
        points.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect();
    format!(r#"polygon points="{}""#, corners.join(" "))
}

/// The style sheet.
fn style() -> String {
    let colours = |dark: bool| {
        let pick = |light, night| if dark { night } else { light };
        let mut rules = String::new();
        for (rule, light, night) in PAGE {
            rules.push_str(&rule.replace("COLOUR", pick(light, night)));
        }
        for (index, (light, night)) in SERIES.into_iter().enumerate() {
            let colour = pick(light, night);
            write!(rules, ".fill{index}{{fill:{colour}}}.line{index}{{stroke:{colour}}}").ok();
        }
        rules
    };
    let mut dashes = String::new();
    for index in 0..COLOURS {
        let dash = DASHES[index % DASHES.len()];
        write!(dashes, ".line{index}{{stroke-dasharray:{dash}}}").ok();
    }
    format!(
        "text{{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}}\
         .title{{font-size:16px;font-weight:600}}.strong{{font-weight:600}}\
         .small{{font-size:11px}}\
         polyline{{fill:none;stroke-width:2;stroke-linejoin:round}}\
         .grid,.axis{{stroke-width:1}}.mark{{stroke-width:2}}.thin{{stroke-width:2;opacity:.55}}\
         .seam{{stroke-width:1.5}}.solid{{stroke-dasharray:none}}\
         {dashes}{light}@media (prefers-color-scheme:dark){{{dark}}}",
        light = colours(false),
        dark = colours(true),
    )
}

/// A coordinate: a tenth of a pixel is enough.
/// What lies nowhere, because a measurement made no sense, lies at the edge.
fn short(value: f64) -> String {
    const FAR: f64 = 9_999.0;
    let value = if value.is_nan() { -FAR } else { value.clamp(-FAR, FAR) };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Text as XML has it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                // XML 1.0, section 2.2: no other control character may stand in a document.
                letter if letter.is_control() => f.write_char(' ')?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_calls_itself_cannot_break_the_picture() {
        let mut svg = Svg::new("a<b", "\"x\" & y");
        svg.text((1.0, 2.0), Anchor::Start, "ink", "</svg>\u{1}");
        let text = svg.finish(10.0);
        assert!(text.contains("<title id=\"title\">a&lt;b</title>"), "{text}");
        assert!(text.contains("&quot;x&quot; &amp; y"), "{text}");
        assert!(text.contains(">&lt;/svg&gt; </text>"), "{text}");
        assert_eq!(text.matches("</svg>").count(), 1, "{text}");
    }

    #[test]
    fn each_series_has_a_colour_for_light_and_for_dark_pages() {
        let style = style();
        let (light, dark) = style.split_once("@media").unwrap();
        for index in 0..COLOURS {
            let class = format!(".fill{index}{{");
            assert!(light.contains(&class) && dark.contains(&class), "{class} in {style}");
        }
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!(
            (short(2.0), short(2.25), short(-0.04)),
            ("2".into(), "2.2".into(), "-0".into())
        );
    }
}
