// SPDX-License-Identifier: GPL-2.0
//! Boots a Linux kernel as a TD with KVM's public ioctls and nothing else.

mod acpi;
mod boot;
mod console;
mod convert;
mod devices;
mod efi;
mod ioapic;
mod layout;
mod outcome;
mod payload;
mod stats;
mod tdx;
mod vcpu;
mod vm;

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use console::{Choice, Console};
use devices::Devices;
use outcome::Outcome;
use stats::Stats;
use vcpu::Vcpu;
use vm::{Settings, Vm};

const EXIT_CODES: &str = "\
Exit status:
  0       the TD reported success (0 to port f4) and powered off
  1..63   the TD reported this failure and powered off
  64      wrong usage
  65      KVM or the host failed
  66      the TD died: triple fault or fatal error
  67      the TD powered off without a report
  68      --timeout
  69      ended by the user: ^A x with --console stdio

Ports of the TD: 3f8 console, f4 result, f5 milestone, 600 ACPI sleep control.";

/// Boots a Linux kernel as a TDX guest (TD) with KVM's public ioctls.
#[derive(Parser, Debug)]
#[command(name = "tdx-vmm", version, after_help = EXIT_CODES)]
struct Args {
    /// bzImage or vmlinux with INTEL_TDX_GUEST and EFI
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initramfs, as the kernel can unpack it
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line; efi=noruntime is added
    #[arg(long, default_value = "console=ttyS0 earlyprintk=ttyS0")]
    cmdline: String,
    /// Memory in MiB, a multiple of 2
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    /// vCPUs, at most as many as the host has CPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Where the TD's serial port goes: stdio, output (stdio without input), none, or a file
    #[arg(long, default_value = "output")]
    console: Choice,
    /// Accept all memory before the kernel starts instead of when it is used
    #[arg(long)]
    accept_all: bool,
    /// Extended CPU state of the TD, a mask as in XCR0 and IA32_XSS
    #[arg(long, value_name = "MASK", default_value = "3", value_parser = parse_mask)]
    xfam: u64,
    /// Write counters and times to this file, as JSON
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Hexadecimal with 0x before it, else decimal.
fn parse_mask(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
}

fn main() {
    let args = Args::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { 64 } else { 0 });
    });
    let stats = Arc::new(Stats::new(args.cpus));
    let outcome = run(&args, &stats).unwrap_or_else(|error| Outcome::Error(format!("{error:#}")));
    let (ms, _) = stats.milestone("end");
    console::restore();
    let _ = std::io::stdout().flush();
    let mut status = outcome.status();
    eprintln!("tdx-vmm: {outcome} ({ms} ms)");
    if let Some(path) = &args.stats {
        let json = stats.json(status, &outcome.to_string());
        if let Err(error) = std::fs::write(path, json) {
            eprintln!("tdx-vmm: {}: {error}", path.display());
            status = Outcome::Error(String::new()).status();
        }
    }
    // vCPU threads may still be in KVM_RUN: they end with the process.
    std::process::exit(status);
}

fn run(args: &Args, stats: &Arc<Stats>) -> Result<Outcome> {
    let memory = args.memory.saturating_mul(1 << 20);
    // Before a VM is there, so that wrong values cost nothing.
    layout::Layout::new(memory, true)?;
    let console = Console::new(&args.console, stats.clone())
        .with_context(|| format!("--console {:?}", args.console))?;
    let (vm, vcpus) = Vm::new(&Settings {
        memory,
        cpus: args.cpus,
        xfam: args.xfam,
    })?;
    let boot = boot::Boot {
        kernel: &args.kernel,
        initrd: args.initrd.as_deref(),
        cmdline: &args.cmdline,
        memory,
        cpus: args.cpus,
        lazy: !args.accept_all,
    };
    let image = boot.stage(&vm.memory)?;
    let first = vcpus.first().context("a TD without vCPUs")?;
    vm.build(first, &image)?;
    stats.milestone("built");

    let vm = Arc::new(vm);
    let sender = vm.clone();
    let send = Box::new(move |message: ioapic::Message| {
        // An interrupt that no CPU takes is lost, as on hardware.
        let _ = sender.signal_msi(message.address, message.data);
    });
    let devices = Arc::new(Devices::new(console, stats.clone(), send));
    let (done, outcomes) = mpsc::channel();
    if args.console == Choice::Stdio {
        let (devices, done) = (devices.clone(), done.clone());
        console::set_raw();
        spawn("input", move || {
            console::read_input(
                |key| devices.input(key),
                || {
                    let _ = done.send(Outcome::Quit);
                },
            );
        })?;
    }
    for (index, fd) in vcpus.into_iter().enumerate() {
        let mut vcpu = Vcpu {
            index,
            fd,
            vm: vm.clone(),
            devices: devices.clone(),
            stats: stats.clone(),
            fault: (0, 0),
            parked: index != 0,
        };
        let done = done.clone();
        spawn(&format!("vcpu{index}"), move || {
            // The first outcome counts; later ones find nobody.
            let _ = done.send(vcpu.run());
        })?;
    }
    Ok(match args.timeout {
        None => outcomes.recv().context("all threads are gone")?,
        Some(seconds) => outcomes
            .recv_timeout(Duration::from_secs(seconds))
            .unwrap_or(Outcome::Timeout(seconds)),
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .with_context(|| format!("thread {name}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["tdx-vmm", "--kernel", "k", "--xfam", "0x7"]).unwrap();
        assert_eq!((args.memory, args.cpus, args.xfam), (512, 2, 7));
        assert!(Args::try_parse_from(["tdx-vmm", "--kernel", "k", "--cpus", "0"]).is_err());
        assert!(Args::try_parse_from(["tdx-vmm"]).is_err());
    }

    #[test]
    fn help_tells_every_exit_status() {
        let help = Args::command().render_long_help().to_string();
        for outcome in [
            Outcome::Error(String::new()),
            Outcome::Crash(String::new()),
            Outcome::PowerOff(None),
            Outcome::Timeout(1),
            Outcome::Quit,
        ] {
            let status = format!("  {}      ", outcome.status());
            assert!(help.contains(&status), "{status}");
        }
    }
}
