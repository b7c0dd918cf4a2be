//! What a vertex is called where users read it.

use crate::Vertex;
use crate::op::{FileActionKind, Op};

/// Names of merges and diffs contain those of their inputs; a graph with much sharing would make them explode.
const MAX_NAME: usize = 64 << 10;

/// The name that users read: the client's own if it gave one, else what the op does.
pub fn display_name(vertex: &Vertex) -> &str {
    &vertex.name
}

/// The name of an op whose inputs have the names that `input` gives.
pub(crate) fn of_op<'a>(op: &Op, inputs: usize, input: impl Fn(usize) -> &'a str) -> String {
    let mut name = match op {
        Op::Source(source) => source.identifier.clone(),
        Op::Exec(exec) => exec.meta.args.join(" "),
        Op::File(file) => {
            let names: Vec<String> = file.actions.iter().map(|action| of_action(&action.kind)).collect();
            names.join(", ")
        }
        Op::Build(_) => "build".to_owned(),
        Op::Merge(_) => {
            let names: Vec<&str> = (0..inputs).map(&input).collect();
            format!("merge ({})", names.join(", "))
        }
        Op::Diff(diff) => {
            let side = |index: Option<usize>| match index {
                None => "scratch".to_owned(),
                Some(index) => format!("({})", input(index)),
            };
            format!("diff {} -> {}", side(diff.lower), side(diff.upper))
        }
        Op::Passthrough(passthrough) => format!("passthrough {}", passthrough.id),
    };
    if name.len() > MAX_NAME {
        let mut end = MAX_NAME;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.push_str("...");
    }
    name
}

fn of_action(action: &FileActionKind) -> String {
    match action {
        FileActionKind::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
        FileActionKind::Mkfile(file) => format!("mkfile {}", file.path),
        FileActionKind::Mkdir(dir) => format!("mkdir {}", dir.path),
        FileActionKind::Rm(rm) => format!("rm {}", rm.path),
        FileActionKind::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
    }
}
