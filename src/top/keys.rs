//! What the keys do: by which column datanodes are sorted, which one is chosen, what is shown over them.

use std::cmp::Ordering;

use cairn_client::fs::DatanodeInfo;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sample::{Flow, Sample};

/// Rows that a page is.
const PAGE: usize = 10;

/// What datanodes are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Number.
    Node,
    /// Liveness, the dead first.
    State,
    /// Share of space that is used, the fullest first.
    Used,
    /// Bytes sent to readers.
    Read,
    /// Bytes taken from writers.
    Written,
    /// How long it was silent.
    Heard,
}

impl Order {
    /// In the order of the columns.
    pub const ALL: [Order; 6] =
        [Order::Node, Order::State, Order::Used, Order::Read, Order::Written, Order::Heard];

    fn compare(self, sample: &Sample, a: &DatanodeInfo, b: &DatanodeInfo) -> Ordering {
        let flow = |node: &DatanodeInfo| sample.flows.get(&node.node).copied().unwrap_or(Flow::default());
        match self {
            Order::Node => Ordering::Equal,
            Order::State => b.liveness.cmp(&a.liveness),
            Order::Used => share(b).total_cmp(&share(a)),
            Order::Read => flow(b).read.total_cmp(&flow(a).read),
            Order::Written => flow(b).written.total_cmp(&flow(a).written),
            Order::Heard => b.last_heard_ms.cmp(&a.last_heard_ms),
        }
        .then(a.node.cmp(&b.node))
    }
}

/// How much of what it has or may take is used.
pub fn share(node: &DatanodeInfo) -> f64 {
    let whole = node.used.saturating_add(node.available);
    if whole == 0 { 0.0 } else { node.used as f64 / whole as f64 }
}

/// What the user has chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The column.
    pub order: Order,
    /// The other way round.
    pub reversed: bool,
    /// The row that is marked.
    pub row: usize,
    /// Whether the help is shown.
    pub help: bool,
    /// Whether the picture stands still.
    pub paused: bool,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice { order: Order::Node, reversed: false, row: 0, help: false, paused: false }
    }
}

/// What is to be done outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Draw again.
    Draw,
    /// Ask for a sample at once.
    Ask,
    /// Stop the process, as Ctrl-Z does.
    Suspend,
    /// End.
    Quit,
}

impl Choice {
    /// A key was pressed while so many datanodes were shown.
    pub fn press(&mut self, key: KeyEvent, rows: usize) -> Act {
        let last = rows.saturating_sub(1);
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Act::Quit,
                KeyCode::Char('z') => Act::Suspend,
                _ => Act::Draw,
            };
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::F(10) => return Act::Quit,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc => return Act::Quit,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.help = !self.help,
            KeyCode::Char(' ') | KeyCode::F(5) => return Act::Ask,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => self.row = (self.row + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.row = self.row.saturating_sub(1),
            KeyCode::PageDown => self.row = (self.row + PAGE).min(last),
            KeyCode::PageUp => self.row = self.row.saturating_sub(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.row = 0,
            KeyCode::End | KeyCode::Char('G') => self.row = last,
            KeyCode::Char('n') => self.sort(Order::Node),
            KeyCode::Char('s') => self.sort(Order::State),
            KeyCode::Char('u') => self.sort(Order::Used),
            KeyCode::Char('r') => self.sort(Order::Read),
            KeyCode::Char('w') => self.sort(Order::Written),
            KeyCode::Char('t') => self.sort(Order::Heard),
            KeyCode::Char('>' | '.') | KeyCode::Right => self.shift(1),
            KeyCode::Char('<' | ',') | KeyCode::Left => self.shift(Order::ALL.len() - 1),
            KeyCode::Char('I') => self.reversed = !self.reversed,
            _ => {}
        }
        Act::Draw
    }

    /// By a column; again, and it is the other way round.
    fn sort(&mut self, order: Order) {
        self.reversed = self.order == order && !self.reversed;
        self.order = order;
    }

    fn shift(&mut self, by: usize) {
        let at = Order::ALL.iter().position(|order| *order == self.order).unwrap_or(0);
        self.order = Order::ALL[(at + by) % Order::ALL.len()];
        self.reversed = false;
    }

    /// The datanodes of a sample in the order that was chosen.
    pub fn sorted<'a>(&self, sample: &'a Sample) -> Vec<&'a DatanodeInfo> {
        let mut nodes: Vec<&DatanodeInfo> = sample.status.datanodes.iter().collect();
        nodes.sort_by(|a, b| self.order.compare(sample, a, b));
        if self.reversed {
            nodes.reverse();
        }
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    fn sample() -> Sample {
        let node = |node, used, last_heard_ms| DatanodeInfo {
            node,
            used,
            available: 100 - used,
            last_heard_ms,
            ..DatanodeInfo::default()
        };
        let mut sample = Sample::default();
        sample.status.datanodes = vec![node(2, 10, 5), node(1, 30, 9), node(3, 20, 9)];
        sample
    }

    #[test]
    fn keys_sort_and_turn_round() {
        let sample = sample();
        let mut choice = Choice::default();
        let order = |choice: &Choice| choice.sorted(&sample).iter().map(|node| node.node).collect::<Vec<_>>();
        assert_eq!(order(&choice), [1, 2, 3]);
        choice.press(key(KeyCode::Char('u')), 3);
        assert_eq!(order(&choice), [1, 3, 2]);
        choice.press(key(KeyCode::Char('u')), 3);
        assert_eq!(order(&choice), [2, 3, 1]);
        choice.press(key(KeyCode::Char('t')), 3);
        assert_eq!(order(&choice), [1, 3, 2]);
        choice.press(key(KeyCode::Right), 3);
        assert_eq!(choice.order, Order::Node);
        choice.press(key(KeyCode::Left), 3);
        assert_eq!(choice.order, Order::Heard);
    }

    #[test]
    fn the_mark_stays_on_the_rows() {
        let mut choice = Choice::default();
        assert_eq!(choice.press(key(KeyCode::Up), 3), Act::Draw);
        assert_eq!(choice.row, 0);
        choice.press(key(KeyCode::PageDown), 3);
        assert_eq!(choice.row, 2);
        choice.press(key(KeyCode::Down), 0);
        assert_eq!(choice.row, 0);
    }

    #[test]
    fn there_are_ways_out() {
        let mut choice = Choice::default();
        for code in [KeyCode::Char('q'), KeyCode::F(10), KeyCode::Esc] {
            assert_eq!(choice.press(key(code), 1), Act::Quit);
        }
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(choice.press(control, 1), Act::Quit);
        choice.press(key(KeyCode::F(1)), 1);
        assert!(choice.help);
        assert_eq!(choice.press(key(KeyCode::Esc), 1), Act::Draw);
        assert!(!choice.help);
    }
}
