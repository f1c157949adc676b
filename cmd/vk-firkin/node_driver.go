// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/vz"
)

// macOSGuests is how many macOS guests one host may run at once: Apple's license and its
// framework agree on two.
const macOSGuests = 2

// defaultDriver is the product's own where it can be, and QEMU elsewhere.
func defaultDriver() string {
	if runtime.GOOS == "darwin" {
		return vz.Name
	}
	return qemu.Name
}

// checkDriver refuses drivers that nobody knows.
func checkDriver(name string) error {
	if name != vz.Name && name != qemu.Name {
		return fmt.Errorf("--driver %q: want %s or %s", name, vz.Name, qemu.Name)
	}
	return nil
}

// makeDriver loads the guest kit and opens the driver. QEMU's may boot the kit once to
// find out how guests are best run here.
func (n *node) makeDriver(ctx context.Context) (err error) {
	if n.kit, err = kit.Load(n.GuestKit); err != nil {
		return guestKitError(err)
	}
	manifest, err := kit.ReadManifest(n.GuestKit)
	if err != nil {
		return err
	}
	n.kernel = manifest.KernelRelease
	if n.driver, err = n.openDriver(ctx); err != nil {
		return err
	}
	n.onClose(n.driver.Close)
	features := n.driver.Features()
	if !features.Snapshots {
		return fmt.Errorf("%w: this host cannot save and restore machines, which is what this program is for: it needs macOS 14 or later on Apple silicon", vm.ErrNotSupported)
	}
	n.logger.Info("Opened driver", "driver", n.driver.Name(), "accelerator", features.Accelerator, "arch", features.Arch)
	return nil
}

// guestKitError says what to do without a guest kit.
func guestKitError(err error) error {
	return fmt.Errorf("load guest kit (make guest builds it; --guest-kit says where it is): %w", err)
}

func (n *node) openDriver(ctx context.Context) (vm.Driver, error) {
	switch n.Driver {
	case qemu.Name:
		return qemu.Open(ctx, qemu.Options{
			StateDir: n.StateDir, CacheDir: n.CacheDir, Arch: n.kit.Arch, Accelerator: n.Accelerator, Kit: n.kit, Logger: n.log("qemu"),
		})
	case vz.Name:
		_, host, err := newFramework()
		if err != nil {
			return nil, err
		}
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program, which machines' shims are made of: %w", err)
		}
		return vz.Open(ctx, vz.Options{
			StateDir: n.StateDir, Shim: []string{self, shimCommand}, Host: host, Arch: n.kit.Arch, MacOSGuests: macOSGuests, Logger: n.log("vz"),
		})
	}
	return nil, errors.Join(vm.ErrInvalidConfig, checkDriver(n.Driver))
}
