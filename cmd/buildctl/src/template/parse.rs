//! Reading templates: text, and actions in double braces.

use super::TemplateError;
use crate::data::Data;

/// Templates nest no deeper, nor do pipelines in parentheses.
const DEPTH: usize = 100;

/// A part of a template.
#[derive(Debug)]
pub enum Node {
    /// As it stands.
    Text(String),
    /// Shows a value, or sets a variable.
    Action(Pipeline),
    /// Those under the first condition that holds, else the last ones.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    /// Like `If`, with the value as the dot.
    With(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    /// For each item; the last ones if there is none.
    Range(Pipeline, Vec<Node>, Vec<Node>),
    /// Ends the innermost range.
    Break,
    /// Goes on with its next item.
    Continue,
}

/// Commands of which each passes its value on to the next.
#[derive(Debug)]
pub struct Pipeline {
    /// The variables that it is given to.
    pub variables: Vec<String>,
    /// They are new ones.
    pub declares: bool,
    pub commands: Vec<Vec<Operand>>,
}

/// What commands are made of.
#[derive(Debug)]
pub enum Operand {
    /// `.`, `.A.B`
    Dot(Vec<String>),
    /// `$x`, `$x.A.B`
    Variable(String, Vec<String>),
    Literal(Data),
    Function(String),
    /// `(...)`, `(...).A`
    Pipeline(Pipeline, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// `.` alone.
    Dot,
    /// `.Name`, right after what comes before it or not.
    Field(String, bool),
    Variable(String),
    Word(String),
    Literal(Data),
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
}

fn wrong(message: impl Into<String>) -> TemplateError {
    TemplateError(message.into())
}

/// The nodes of a template.
pub fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter(), ranges: 0 };
    let (nodes, end) = parser.nodes(0)?;
    match end {
        Stop::Text => Ok(nodes),
        Stop::Closed => Err(wrong("unexpected {{end}}")),
        Stop::Else(_) => Err(wrong("unexpected {{else}}")),
    }
}

/// Text and actions in turn.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

fn pieces(mut rest: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut trim = false;
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let mut text = if trim { text.trim_start() } else { text };
        // `{{- ` and ` -}}` take the white space away.
        let after = match after {
            Some(after) => match after.strip_prefix('-').filter(|after| after.starts_with(char::is_whitespace)) {
                Some(after) => {
                    text = text.trim_end();
                    Some(after)
                }
                None => Some(after),
            },
            None => None,
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        let Some(after) = after else { return Ok(pieces) };
        if let Some(comment) = after.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or_else(|| wrong("unclosed comment"))?;
            trim = after.trim_start().starts_with("-}}");
            let (_, after) = after.split_once("}}").ok_or_else(|| wrong("comment ends before closing delimiter"))?;
            rest = after;
            continue;
        }
        let (tokens, after) = tokens(after)?;
        let (action, right) = after.split_at(after.find("}}").unwrap_or(0));
        trim = action.contains('-');
        rest = &right[2..];
        pieces.push(Piece::Action(tokens));
    }
}

/// The tokens up to `}}`, and the rest from the closing ` -}}` or `}}` on.
fn tokens(text: &str) -> Result<(Vec<Token>, &str), TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        let spaced = rest.starts_with(char::is_whitespace);
        let inner = rest.trim_start();
        if inner.starts_with("}}") || (spaced && inner.starts_with("-}}")) {
            return Ok((tokens, inner));
        }
        rest = inner;
        let Some(first) = rest.chars().next() else { return Err(wrong("unclosed action")) };
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Assign, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '"' => quoted(rest)?,
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| wrong("unterminated raw quoted string"))?;
                (Token::Literal(Data::Text(rest[1..=end].to_owned())), end + 2)
            }
            '.' => match word(&rest[1..]) {
                "" => (Token::Dot, 1),
                name => (Token::Field(name.to_owned(), !spaced && !tokens.is_empty()), 1 + name.len()),
            },
            '$' => {
                let name = word(&rest[1..]);
                (Token::Variable(name.to_owned()), 1 + name.len())
            }
            c if c.is_ascii_digit()
                || ((c == '-' || c == '+') && rest[1..].starts_with(|c: char| c.is_ascii_digit())) =>
            {
                let length =
                    rest[1..].find(|c: char| !c.is_alphanumeric() && c != '.').map_or(rest.len(), |end| end + 1);
                let number =
                    rest[..length].parse().map_err(|_| wrong(format!("bad number syntax: {:?}", &rest[..length])))?;
                (Token::Literal(Data::Number(number)), length)
            }
            _ => match word(rest) {
                "" => return Err(wrong(format!("unexpected {first:?} in command"))),
                "true" => (Token::Literal(Data::Bool(true)), 4),
                "false" => (Token::Literal(Data::Bool(false)), 5),
                "nil" => (Token::Literal(Data::Null), 3),
                name => (Token::Word(name.to_owned()), name.len()),
            },
        };
        tokens.push(token);
        rest = &rest[length..];
    }
}

fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// A text in double quotes, and its length with them.
fn quoted(text: &str) -> Result<(Token, usize), TemplateError> {
    let unterminated = || wrong("unterminated quoted string");
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((place, c)) = characters.next() {
        match c {
            '"' => return Ok((Token::Literal(Data::Text(value)), place + 1)),
            '\n' => break,
            '\\' => value.push(match characters.next().ok_or_else(unterminated)?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'v' => '\x0b',
                c @ ('x' | 'u' | 'U') => {
                    let digits = match c {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let hex: String = characters.by_ref().take(digits).map(|(_, c)| c).collect();
                    let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                    code.ok_or_else(|| wrong("invalid syntax in quoted string"))?
                }
                c @ ('\\' | '"') => c,
                _ => return Err(wrong("invalid syntax in quoted string")),
            }),
            c => value.push(c),
        }
    }
    Err(unterminated())
}

/// What ended a list of nodes.
enum Stop {
    Text,
    Closed,
    /// With what follows it.
    Else(Vec<Token>),
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// How many ranges are open.
    ranges: usize,
}

impl Parser {
    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node>, Stop), TemplateError> {
        if depth > DEPTH {
            return Err(wrong("nested too deeply"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let mut tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            let keyword = match tokens.first() {
                Some(Token::Word(word)) => word.clone(),
                Some(_) => String::new(),
                None => return Err(wrong("missing value for command")),
            };
            let argument = || tokens.get(1..).unwrap_or_default().to_vec();
            match keyword.as_str() {
                "end" if tokens.len() == 1 => return Ok((nodes, Stop::Closed)),
                "else" => return Ok((nodes, Stop::Else(argument()))),
                "if" | "with" => {
                    let node = self.branches(&keyword, argument(), depth)?;
                    nodes.push(node);
                }
                "range" => {
                    let pipeline = pipeline_of(argument(), "range")?;
                    self.ranges += 1;
                    let (body, end) = self.nodes(depth + 1)?;
                    self.ranges -= 1;
                    let otherwise = self.otherwise(end, depth)?;
                    nodes.push(Node::Range(pipeline, body, otherwise));
                }
                "break" | "continue" if tokens.len() == 1 => {
                    if self.ranges == 0 {
                        return Err(wrong(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                    }
                    nodes.push(if keyword == "break" { Node::Break } else { Node::Continue });
                }
                "block" | "define" | "template" => return Err(wrong(format!("{keyword} is not supported"))),
                _ => nodes.push(Node::Action(pipeline_of(std::mem::take(&mut tokens), "command")?)),
            }
        }
        Ok((nodes, Stop::Text))
    }

    /// The rest of `if` or `with`.
    fn branches(&mut self, keyword: &str, first: Vec<Token>, depth: usize) -> Result<Node, TemplateError> {
        let mut branches = Vec::new();
        let mut condition = pipeline_of(first, keyword)?;
        let otherwise = loop {
            let (body, end) = self.nodes(depth + 1)?;
            branches.push((condition, body));
            match end {
                // `{{else if ...}}`
                Stop::Else(tokens) if tokens.first() == Some(&Token::Word(keyword.to_owned())) => {
                    condition = pipeline_of(tokens[1..].to_vec(), keyword)?;
                }
                end => break self.otherwise(end, depth)?,
            }
        };
        Ok(if keyword == "if" { Node::If(branches, otherwise) } else { Node::With(branches, otherwise) })
    }

    /// What comes after `{{else}}`, up to the end.
    fn otherwise(&mut self, end: Stop, depth: usize) -> Result<Vec<Node>, TemplateError> {
        match end {
            Stop::Closed => Ok(Vec::new()),
            Stop::Else(tokens) if tokens.is_empty() => match self.nodes(depth + 1)? {
                (nodes, Stop::Closed) => Ok(nodes),
                (_, Stop::Else(_)) => Err(wrong("unexpected {{else}}")),
                (_, Stop::Text) => Err(wrong("unexpected EOF")),
            },
            Stop::Else(_) => Err(wrong("unexpected token in {{else}}")),
            Stop::Text => Err(wrong("unexpected EOF")),
        }
    }
}

fn pipeline_of(tokens: Vec<Token>, context: &str) -> Result<Pipeline, TemplateError> {
    let mut tokens = tokens.into_iter().peekable();
    let pipeline = pipeline(&mut tokens, context, 0)?;
    match tokens.next() {
        None => Ok(pipeline),
        Some(token) => Err(wrong(format!("unexpected {token:?} in {context}"))),
    }
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

fn pipeline(tokens: &mut Tokens, context: &str, depth: usize) -> Result<Pipeline, TemplateError> {
    if depth > DEPTH {
        return Err(wrong("nested too deeply"));
    }
    let mut pipeline = Pipeline { variables: Vec::new(), declares: false, commands: Vec::new() };
    if depth == 0 {
        pipeline.variables = targets(tokens);
        if !pipeline.variables.is_empty() {
            pipeline.declares = tokens.next() == Some(Token::Declare);
        }
    }
    let mut command = Vec::new();
    loop {
        let fields = |tokens: &mut Tokens| {
            let mut fields = Vec::new();
            while let Some(Token::Field(name, true)) = tokens.peek() {
                fields.push(name.clone());
                tokens.next();
            }
            fields
        };
        let next = match tokens.peek() {
            None | Some(Token::Close) => break,
            Some(_) => tokens.next(),
        };
        match next {
            Some(Token::Pipe) if command.is_empty() => return Err(wrong(format!("missing value for {context}"))),
            Some(Token::Pipe) => pipeline.commands.push(std::mem::take(&mut command)),
            Some(Token::Dot) => command.push(Operand::Dot(Vec::new())),
            Some(Token::Field(name, _)) => {
                let mut path = vec![name];
                path.extend(fields(tokens));
                command.push(Operand::Dot(path));
            }
            Some(Token::Variable(name)) => command.push(Operand::Variable(name, fields(tokens))),
            Some(Token::Word(name)) => command.push(Operand::Function(name)),
            Some(Token::Literal(value)) => command.push(Operand::Literal(value)),
            Some(Token::Open) => {
                let inner = self::pipeline(tokens, "parenthesized pipeline", depth + 1)?;
                if tokens.next() != Some(Token::Close) {
                    return Err(wrong("unclosed left paren"));
                }
                command.push(Operand::Pipeline(inner, fields(tokens)));
            }
            Some(token) => return Err(wrong(format!("unexpected {token:?} in {context}"))),
            None => break,
        }
    }
    if command.is_empty() {
        return Err(wrong(format!("missing value for {context}")));
    }
    pipeline.commands.push(command);
    Ok(pipeline)
}

/// `$x` or `$i, $x` before `:=` or `=`; nothing is taken if there is none.
fn targets(tokens: &mut Tokens) -> Vec<String> {
    let ahead: Vec<Token> = tokens.clone().take(4).collect();
    let (names, length) = match ahead.as_slice() {
        [Token::Variable(name), Token::Declare | Token::Assign, ..] => (vec![name.clone()], 1),
        [Token::Variable(first), Token::Comma, Token::Variable(second), Token::Declare | Token::Assign] => {
            (vec![first.clone(), second.clone()], 3)
        }
        _ => return Vec::new(),
    };
    tokens.by_ref().take(length).for_each(drop);
    names
}
