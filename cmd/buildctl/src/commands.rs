//! The commands and their flags.

use crate::flags::{Command, Flag, Kind, flag};

const FILTER: Flag = Flag { name: "filter", alias: Some("f"), kind: Kind::Texts, usage: "Filter records", default: "" };
const VERBOSE: Flag =
    Flag { name: "verbose", alias: Some("v"), kind: Kind::Bool, usage: "Verbose output", default: "" };
const FORMAT: Flag = flag("format", Kind::Text, "Format the output using the given Go template, e.g, '{{json .}}'");

/// Where the daemon listens if nothing else is said.
pub const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// The program.
pub static ROOT: Command = Command {
    flags: &[
        flag("debug", Kind::Bool, "enable debug output in logs"),
        Flag { default: DEFAULT_ADDRESS, ..flag("addr", Kind::Text, "buildkitd address") },
        Flag { default: "text", ..flag("log-format", Kind::Text, "log formatter: json or text") },
        flag("tlsservername", Kind::Text, "buildkitd server name for certificate validation"),
        flag("tlscacert", Kind::Text, "CA certificate for validation"),
        flag("tlscert", Kind::Text, "client certificate"),
        flag("tlskey", Kind::Text, "client key"),
        flag(
            "tlsdir",
            Kind::Text,
            "directory containing CA certificate, client certificate, and client key. Supported file names are (ca.pem, cert.pem, key.pem) or (ca.crt, tls.crt, tls.key)",
        ),
        Flag { default: "5", ..flag("timeout", Kind::Int, "timeout backend connection after value seconds") },
        flag("wait", Kind::Bool, "block RPCs until the connection becomes available"),
    ],
    commands: &[DU, PRUNE, PRUNE_HISTORIES, BUILD, DEBUG, DIAL_STDIO, COMPLETION, MAN],
    ..Command::new("buildctl", "build utility")
};

const DU: Command = Command { flags: &[FILTER, VERBOSE, FORMAT], ..Command::new("du", "disk usage") };

const PRUNE: Command = Command {
    flags: &[
        Flag { default: "0s", ..flag("keep-duration", Kind::Duration, "Keep data newer than this limit") },
        Flag { default: "0", ..flag("keep-storage", Kind::Float, "Keep data below this limit (in MB)") },
        Flag { default: "0", ..flag("keep-storage-min", Kind::Float, "Always allow data above this limit (in MB)") },
        Flag { default: "0", ..flag("free-storage", Kind::Float, "Keep free data below this limit (in MB)") },
        FILTER,
        flag("all", Kind::Bool, "Include internal/frontend references"),
        VERBOSE,
        FORMAT,
    ],
    ..Command::new("prune", "clean up build cache")
};

const PRUNE_HISTORIES: Command =
    Command { flags: &[FORMAT], ..Command::new("prune-histories", "clean up build histories") };

const BUILD: Command = Command {
    alias: Some("b"),
    usage_text: "\n     To build and push an image using Dockerfile:\n       $ buildctl build --frontend dockerfile.v0 --opt target=foo --opt build-arg:foo=bar --local context=. --local dockerfile=. --output type=image,name=docker.io/username/image,push=true\n     ",
    flags: &[
        Flag {
            alias: Some("o"),
            ..flag(
                "output",
                Kind::Texts,
                "Define exports for build result, e.g. --output type=image,name=docker.io/username/image,push=true",
            )
        },
        Flag {
            default: "auto",
            ..flag(
                "progress",
                Kind::Text,
                "Set type of progress (auto, plain, tty, rawjson). Use plain to show container output",
            )
        },
        flag("trace", Kind::Text, "Path to trace file. Defaults to no tracing."),
        flag("local", Kind::Texts, "Allow build access to the local directory"),
        flag("oci-layout", Kind::Texts, "Allow build access to the local OCI layout"),
        flag("frontend", Kind::Text, "Define frontend used for build"),
        flag("opt", Kind::Texts, "Define custom options for frontend, e.g. --opt target=foo --opt build-arg:foo=bar"),
        flag("no-cache", Kind::Bool, "Disable cache for all the vertices"),
        flag(
            "export-cache",
            Kind::Texts,
            "Export build cache, e.g. --export-cache type=registry,ref=example.com/foo/bar, or --export-cache type=local,dest=path/to/dir",
        ),
        flag(
            "import-cache",
            Kind::Texts,
            "Import build cache, e.g. --import-cache type=registry,ref=example.com/foo/bar, or --import-cache type=local,src=path/to/dir",
        ),
        flag("secret", Kind::Texts, "Secret value exposed to the build. Format id=secretname,src=filepath"),
        flag("allow", Kind::Texts, "Allow extra privileged entitlement, e.g. network.host, security.insecure, device"),
        flag(
            "ssh",
            Kind::Texts,
            "Allow forwarding SSH agent or a raw Unix socket to the builder. Format default|<id>[=<socket>[,raw=false]|<key>[,<key>]]",
        ),
        flag("metadata-file", Kind::Text, "Output build metadata (e.g., image digest) to a file as JSON"),
        flag("source-policy-file", Kind::Text, "Read source policy file from a JSON file"),
        flag("proxy-network", Kind::Bool, "Run build with proxy network enforcement"),
        flag("ref-file", Kind::Text, "Write build ref to a file"),
        flag(
            "registry-auth-tlscontext",
            Kind::Texts,
            "Overwrite TLS configuration when authenticating with registries, e.g. --registry-auth-tlscontext host=https://myserver:2376,insecure=false,ca=/path/to/my/ca.crt,cert=/path/to/my/cert.crt,key=/path/to/my/key.crt",
        ),
        flag(
            "debug-json-cache-metrics",
            Kind::Text,
            "Where to output json cache metrics, use 'stdout' or 'stderr' for standard (error) output.",
        ),
    ],
    ..Command::new("build", "build")
};

const DEBUG: Command = Command {
    commands: &[
        Command {
            arguments: "<llbfile>",
            flags: &[flag("dot", Kind::Bool, "Output dot format")],
            ..Command::new(
                "dump-llb",
                "dump LLB in human-readable format. LLB can be also passed via stdin. This command does not require the daemon to be running.",
            )
        },
        Command {
            flags: &[Flag { usage: "containerd-style filter string slice", ..FILTER }, VERBOSE, FORMAT],
            ..Command::new("workers", "list workers")
        },
        Command { flags: &[FORMAT], ..Command::new("info", "display internal information") },
        Command {
            flags: &[
                flag("completed", Kind::Bool, "show completed builds"),
                flag("ref", Kind::Text, "show events for a specific build"),
            ],
            ..Command::new("monitor", "display build events")
        },
        Command {
            flags: &[
                Flag { default: "auto", ..flag("progress", Kind::Text, "progress output type") },
                flag("trace", Kind::Bool, "show opentelemetry trace"),
            ],
            ..Command::new("logs", "display build logs")
        },
        Command {
            flags: &[
                flag("pin", Kind::Bool, "Pin build so it will not be garbage collected"),
                flag("unpin", Kind::Bool, "Unpin build so it will be garbage collected"),
                flag("delete", Kind::Bool, "Delete build record"),
            ],
            ..Command::new("ctl", "control build records")
        },
        Command::new("get", "retrieve a blob from contentstore"),
        Command { flags: &[FORMAT], ..Command::new("histories", "list build records") },
    ],
    ..Command::new("debug", "debug utilities")
};

const DIAL_STDIO: Command = Command {
    hidden: true,
    ..Command::new("dial-stdio", "Proxy the stdio stream to the daemon connection. Should not be invoked manually.")
};

const COMPLETION: Command = Command {
    hidden: true,
    arguments: "bash|fish|zsh",
    ..Command::new("completion", "Output shell completion script for bash, zsh or fish")
};

const MAN: Command = Command {
    hidden: true,
    arguments: "[command...]",
    flags: &[flag("dir", Kind::Text, "Write the pages of all commands into this directory")],
    ..Command::new("man", "Output the manual page of a command")
};
