//! The application's program: found before anything is started.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::BadDev;

/// The program that a shell would run.
pub(super) fn find(program: &OsStr) -> Result<PathBuf, BadDev> {
    let path = Path::new(program);
    let is_path = path.components().count() > 1;
    if is_path {
        return check(path);
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(path)).find(|file| check(file).is_ok());
    found.ok_or_else(|| missing(path))
}

fn check(path: &Path) -> Result<PathBuf, BadDev> {
    let bad = |why| BadDev::NotAProgram { program: path.display().to_string(), why };
    match fs::metadata(path) {
        Err(_) => Err(missing(path)),
        Ok(metadata) if metadata.is_dir() => Err(bad("it is a folder")),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Err(bad("it is not executable")),
        Ok(_) => Ok(path.to_owned()),
    }
}

fn missing(path: &Path) -> BadDev {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of_cargo = path.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    let hint = match of_cargo {
        Some("release") => format!("; build it: cargo build --release -p {name}"),
        Some("debug") => format!("; build it: cargo build -p {name}"),
        _ if path.components().count() > 1 => String::new(),
        _ => format!(" in PATH; give its path, such as ./target/release/{name}"),
    };
    BadDev::NoProgram { program: path.display().to_string(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_says_what_to_do() {
        for (program, error) in [
            (
                "target/release/nothing",
                "there is no program target/release/nothing; build it: cargo build --release -p nothing",
            ),
            ("target/debug/nothing", "there is no program target/debug/nothing; build it: cargo build -p nothing"),
            (
                "no-such-program",
                "there is no program no-such-program in PATH; give its path, such as ./target/release/no-such-program",
            ),
            ("./src", "./src is not a program: it is a folder"),
            ("./Cargo.toml", "./Cargo.toml is not a program: it is not executable"),
        ] {
            assert_eq!(find(OsStr::new(program)).unwrap_err().to_string(), error);
        }
        assert!(find(OsStr::new("sh")).unwrap().is_absolute());
    }
}
