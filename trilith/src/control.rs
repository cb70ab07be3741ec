//! Lines between `up` and its children: commands on a child's standard input, news on its standard
//! output. One line each, words separated by a space. Whoever reads skips what it does not know.

use core::time::Duration;

/// What `up` tells a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// No other engine of this volume starts within the span: the engine may serve reads without
    /// a majority (M13).
    Grant(Duration),
    /// Stop cleanly. The end of the input means the same.
    Stop,
}

impl Command {
    /// The line, with its end.
    pub(crate) fn to_line(self) -> String {
        match self {
            Command::Grant(span) => format!("grant {}\n", span.as_millis()),
            Command::Stop => "stop\n".to_owned(),
        }
    }

    /// The command of a line, if it is one.
    pub(crate) fn parse(line: &str) -> Option<Command> {
        let mut words = line.split_ascii_whitespace();
        let command = match (words.next()?, words.next()) {
            ("grant", Some(millis)) => Command::Grant(Duration::from_millis(millis.parse().ok()?)),
            ("stop", None) => Command::Stop,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// What a child tells `up`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum News {
    /// It listens.
    Ready,
    /// State of the volume in a word (engine only).
    State(String),
    /// Loss epoch that clients are bound to from now on (engine only).
    Loss(u32),
    /// The volume is a block device of this host, of this number (engine only).
    Device(u32),
}

impl News {
    /// The line, with its end.
    pub(crate) fn to_line(&self) -> String {
        match self {
            News::Ready => "ready\n".to_owned(),
            News::State(state) => format!("state {state}\n"),
            News::Loss(loss) => format!("loss {loss}\n"),
            News::Device(number) => format!("device {number}\n"),
        }
    }

    /// The news of a line, if it is some.
    pub(crate) fn parse(line: &str) -> Option<News> {
        let line = line.trim_end();
        match line.split_once(' ') {
            None if line == "ready" => Some(News::Ready),
            Some(("state", state)) if !state.is_empty() => Some(News::State(state.to_owned())),
            Some(("loss", loss)) => loss.parse().ok().map(News::Loss),
            Some(("device", number)) => number.parse().ok().map(News::Device),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_way_through_a_line() {
        for command in [Command::Grant(Duration::from_millis(1500)), Command::Stop] {
            assert_eq!(Command::parse(&command.to_line()), Some(command));
        }
        for line in ["", "grant", "grant x", "grant 1 2", "stop now", "halt"] {
            assert_eq!(Command::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn news_survive_the_way_through_a_line() {
        for news in [
            News::Ready,
            News::State("read-only".into()),
            News::Loss(7),
            News::Device(3),
        ] {
            assert_eq!(News::parse(&news.to_line()), Some(news));
        }
        for line in [
            "",
            "ready now",
            "state ",
            "loss -1",
            "device x",
            "hello world",
        ] {
            assert_eq!(News::parse(line), None, "{line:?}");
        }
    }
}
