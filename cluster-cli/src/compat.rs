//! Whether two versions of a program fit together: `check-compat`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use comfy_table::{Table, presets};
use outpost_proto::compat;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};
use serde_json::json;
use tonic::metadata::MetadataMap;

use crate::{
    address::Address,
    args::{CompatArgs, DataOutput, TlsArgs},
    connect::{self, connect},
    error::CliError,
    output::Output,
    reflect::Reflection,
};

/// Why a version can't be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadVersion {
    #[error("`{text}` is no folder of .proto files, no file with descriptors, and no address of a server: {why}")]
    Nothing { text: String, why: String },
    #[error("{} has no .proto files", .0.display())]
    Empty(PathBuf),
    #[error("{0}")]
    Proto(String),
    #[error("{} holds no descriptors: {problem}; `buf build -o FILE` and `protoc --include_imports -o FILE` write such a file",
        path.display())]
    Descriptors { path: PathBuf, problem: String },
    #[error("{0} has no services")]
    NoServices(String),
}

pub(crate) async fn run(args: &CompatArgs, out: &mut Output) -> Result<(), CliError> {
    let old = services(&args.old, &args.tls).await?;
    let new = services(&args.new, &args.tls).await?;
    let found = compat::compare(&old.services, &new.services);
    for (one, other) in [(&old, &new), (&new, &old)] {
        let listed =
            |service: &&ServiceDescriptor| one.services.iter().any(|known| known.full_name() == service.full_name());
        let missing: Vec<_> =
            other.services.iter().filter(|service| !listed(service)).map(ServiceDescriptor::full_name).collect();
        if one.reflected && !missing.is_empty() {
            let _ = writeln!(
                io::stderr(),
                "note: {} does not tell of {}: a node tells clients of no internal services; compare folders or files for those",
                one.text,
                missing.join(", ")
            );
        }
    }
    match args.output {
        DataOutput::Json => out.print_json(&json!({ "compatible": found.is_empty(), "differences": found })).await?,
        DataOutput::Table if found.is_empty() => {
            out.print(&format!("compatible: {} services were compared\n", old.services.len())).await?;
        }
        DataOutput::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(["WHAT", "RULE", "PROBLEM"]);
            for found in &found {
                table.add_row([found.what.clone(), found.rule.to_string(), found.problem.clone()]);
            }
            out.print(&format!("{}\n", table.trim_fmt())).await?;
        }
    }
    match found.len() {
        0 => Ok(()),
        1 => Err(CliError::Failed("one difference keeps the two versions apart".to_owned())),
        count => Err(CliError::Failed(format!("{count} differences keep the two versions apart"))),
    }
}

/// A version, as it was given.
struct Version<'a> {
    text: &'a str,
    services: Vec<ServiceDescriptor>,
    /// By a server, which need not tell of all.
    reflected: bool,
}

/// The services of a version: of a folder, of a file, or of a server.
async fn services<'a>(text: &'a str, tls: &TlsArgs) -> Result<Version<'a>, CliError> {
    let path = Path::new(text);
    let mut reflected = false;
    let found = if path.is_dir() {
        compiled(path)?
    } else if path.is_file() {
        let read = fs::read(path).map_err(|error| CliError::File { path: path.to_owned(), error })?;
        let bad = |problem: String| BadVersion::Descriptors { path: path.to_owned(), problem };
        DescriptorPool::decode(&*read).map_err(|error| bad(error.to_string()))?.services().collect()
    } else {
        match text.parse::<Address>() {
            Ok(address) => {
                reflected = true;
                by_reflection(address, tls).await?
            }
            Err(error) => {
                return Err(BadVersion::Nothing { text: text.to_owned(), why: error.to_string() }.into());
            }
        }
    };
    if found.is_empty() {
        return Err(BadVersion::NoServices(text.to_owned()).into());
    }
    Ok(Version { text, services: found, reflected })
}

async fn by_reflection(address: Address, tls: &TlsArgs) -> Result<Vec<ServiceDescriptor>, CliError> {
    /// What every node has, whatever the program.
    const OWN: &str = "grpc.";
    let address = address.with_tls(tls.is_set());
    let channel = connect(&address, &connect::From::Address, Some(tls)).await?;
    let (mut reflection, names) =
        Reflection::begin(channel, MetadataMap::new(), &address, &connect::From::Address).await?;
    let mut services = Vec::new();
    for name in names.iter().filter(|name| !name.starts_with(OWN)) {
        services.push(reflection.service(name).await?);
    }
    Ok(services)
}

/// The services of all .proto files below a folder, whose imports are relative to it.
fn compiled(folder: &Path) -> Result<Vec<ServiceDescriptor>, CliError> {
    let mut files = Vec::new();
    below(folder, folder, &mut files).map_err(|error| CliError::File { path: folder.to_owned(), error })?;
    if files.is_empty() {
        return Err(BadVersion::Empty(folder.to_owned()).into());
    }
    files.sort();
    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(folder.to_owned()));
    resolver.add(Options);
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true);
    // The `Debug` of its errors has the file, the line and the column.
    let bad = |error: protox::Error| BadVersion::Proto(format!("{error:?}"));
    for file in &files {
        compiler.open_file(file).map_err(bad)?;
    }
    let pool = DescriptorPool::from_file_descriptor_set(compiler.file_descriptor_set());
    let pool = pool.map_err(|error| BadVersion::Proto(error.to_string()))?;
    Ok(pool.services().collect())
}

fn below(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            below(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto")
            && let Ok(relative) = path.strip_prefix(root)
        {
            files.push(relative.to_owned());
        }
    }
    Ok(())
}

/// What every program may import without a copy of it.
struct Options;

impl FileResolver for Options {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "outpost/v1/options.proto" => File::from_source(name, outpost_proto::OPTIONS),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}
