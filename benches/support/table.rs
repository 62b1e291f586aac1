//! Windows to figures: medians with the least and the most, ratios within a round, a Markdown table, JSON.
//!
//! A ratio is taken between windows of the same round, which ran seconds apart, and of calls per CPU-second, so
//! that a server that left its core idle for a moment does not look slower. The table has no error bars: with
//! five windows the least and the most say more.

use serde_json::{Value, json};

use super::{requests::Row, servers::Kind, window::Window};

/// One server's windows in one row.
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    /// Of one call; none where they cannot be counted.
    pub(crate) allocations: Option<f64>,
    /// A round in which no window counted has None.
    pub(crate) rounds: Vec<Option<Window>>,
    /// With the reason. For the file only: no figure is made of them.
    pub(crate) not_counted: Vec<(Window, String)>,
}

pub(crate) struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, least, most })
    }
}

impl Cell {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, allocations: None, rounds: Vec::new(), not_counted: Vec::new() }
    }

    pub(crate) fn valid(&self) -> usize {
        self.rounds.iter().flatten().count()
    }

    fn spread(&self, figure: impl Fn(&Window) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().flatten().map(figure))
    }

    fn ratio_to(&self, other: &Self) -> Option<Spread> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        let both = pairs.filter_map(|(own, other)| Some((own.as_ref()?, other.as_ref()?)));
        Spread::of(both.map(|(own, other)| own.calls_per_cpu_s / other.calls_per_cpu_s))
    }
}

/// Prints a row's table, ready for a Markdown file.
pub(crate) fn print(row: Row, cells: &[Cell], answer_bytes: &[usize]) {
    let baseline = cells.iter().find(|cell| cell.kind == Kind::BareHyper);
    let stock = cells.iter().find(|cell| cell.kind == Kind::stock_for(row));
    let tower = cells.iter().find(|cell| cell.kind == Kind::TowerMcp);
    let ratio = |cell: &Cell, other: Option<&Cell>| whole(other.and_then(|other| cell.ratio_to(other)), 2);
    let heading = [
        "server",
        "calls/s",
        "CPU µs/call",
        "user",
        "system",
        "allocs",
        "calls/CPU-s",
        "p50 µs",
        "p99 µs",
        "× bare hyper",
        "× rmcp",
        "× tower-mcp",
        "answer B",
        "windows",
    ];
    let mut lines = vec![heading.map(str::to_owned)];
    for (cell, bytes) in cells.iter().zip(answer_bytes) {
        lines.push([
            cell.kind.name().to_owned(),
            whole(cell.spread(|window| window.calls_per_s), 0),
            whole(cell.spread(|window| window.cpu_us_per_call), 2),
            median(cell.spread(|window| window.user_us_per_call), 1),
            median(cell.spread(|window| window.system_us_per_call), 1),
            cell.allocations.map_or_else(|| "-".to_owned(), |allocations| format!("{allocations:.1}")),
            median(cell.spread(|window| window.calls_per_cpu_s), 0),
            median(cell.spread(|window| window.latency_p50_us), 0),
            median(cell.spread(|window| window.latency_p99_us), 0),
            ratio(cell, baseline),
            ratio(cell, stock),
            ratio(cell, tower),
            bytes.to_string(),
            format!("{} of {}", cell.valid(), cell.rounds.len()),
        ]);
    }
    println!("\n### {}\n", row.name());
    print_aligned(&lines);
}

/// Everything, window by window, for whoever wants to reckon otherwise.
pub(crate) fn to_json(row: Row, cells: &[Cell]) -> Value {
    let servers: Vec<Value> = cells
        .iter()
        .map(|cell| {
            let windows: Vec<Value> =
                cell.rounds.iter().map(|window| window.as_ref().map(Window::to_json).into()).collect();
            let not_counted =
                cell.not_counted.iter().map(|(window, why)| json!({ "why": why, "window": window.to_json() }));
            let not_counted: Vec<Value> = not_counted.collect();
            json!({
                "server": cell.kind.name(), "allocations": cell.allocations, "rounds": windows, "not_counted": not_counted,
            })
        })
        .collect();
    json!({ "row": row.name(), "servers": servers })
}

fn print_aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) {
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default());
    for (index, line) in lines.iter().enumerate() {
        let fields: Vec<String> = line.iter().zip(widths).map(|(field, width)| format!("{field:<width$}")).collect();
        println!("| {} |", fields.join(" | "));
        if index == 0 {
            println!("|{}|", widths.map(|width| "-".repeat(width + 2)).join("|"));
        }
    }
}

fn whole(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |Spread { median, least, most }| format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"),
    )
}

fn median(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.digits$}", spread.median))
}
