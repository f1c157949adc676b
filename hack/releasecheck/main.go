// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command releasecheck looks at what `make release` made before anybody else does: each archive has
// what it should, the programs in it are for their platform and have their driver, checksums and bills of
// materials are of these very files, and the archive of this host works in an empty folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// release is a folder of what is given to others.
type release struct {
	dir, version string
	// kits is where the guest kits are that went into the archives.
	kits string
}

func main() {
	var r release
	flag.StringVar(&r.dir, "dir", "bin/release", "`folder` of the release")
	flag.StringVar(&r.version, "version", "", "the release's `version`")
	flag.StringVar(&r.kits, "kits", "bin/guest", "`folder` of the guest kits that are in it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := r.check(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "releasecheck:", err)
		os.Exit(1)
	}
}

func (r release) check(ctx context.Context) error {
	if r.version == "" {
		return errors.New("--version is missing")
	}
	paths, err := filepath.Glob(filepath.Join(r.dir, "*.tar.gz"))
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("there is no archive in %s", r.dir)
	}
	errs := []error{r.checksums()}
	var arches []string
	for _, path := range paths {
		platform, ok := strings.CutPrefix(strings.TrimSuffix(filepath.Base(path), ".tar.gz"), "vk-firkin-"+r.version+"-")
		goos, arch, ok2 := strings.Cut(platform, "-")
		if !ok || !ok2 {
			errs = append(errs, fmt.Errorf("%s: no archive has such a name", path))
			continue
		}
		if err := r.archive(path, goos, arch); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(path), err))
			continue
		}
		if goos == runtime.GOOS && arch == runtime.GOARCH {
			if err := r.tryOut(ctx, path); err != nil {
				errs = append(errs, fmt.Errorf("%s, unpacked: %w", filepath.Base(path), err))
			}
		}
		arches = append(arches, arch)
		fmt.Println("releasecheck:", filepath.Base(path), "is what it should be")
	}
	slices.Sort(arches)
	for _, arch := range slices.Compact(arches) {
		if err := r.agentBill(arch); err != nil {
			errs = append(errs, fmt.Errorf("guest kit for %s: %w", arch, err))
		}
	}
	return errors.Join(errs...)
}

// archive checks one archive, the program in it and its bill of materials.
func (r release) archive(path, goos, arch string) error {
	if err := kit.Verify(filepath.Join(r.kits, arch)); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "releasecheck-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "vk-firkin")
	files, err := readArchive(path, strings.TrimSuffix(filepath.Base(path), ".tar.gz"), maxStored, map[string]string{"bin/vk-firkin": program})
	if err != nil {
		return err
	}
	manifest, err := kit.ReadManifest(filepath.Join(r.kits, arch))
	if err != nil {
		return err
	}
	return errors.Join(
		complete(files, arch, manifest),
		checkProgram(program, goos, arch),
		checkBill(strings.TrimSuffix(path, ".tar.gz")+".cdx.json", r.version, program),
	)
}

// agentBill checks the bill of materials of a kit's agent, where the release has one.
func (r release) agentBill(arch string) error {
	bill := filepath.Join(r.dir, "guest-kit-"+r.version+"-"+arch+".cdx.json")
	if _, err := os.Stat(bill); errors.Is(err, os.ErrNotExist) {
		fmt.Printf("releasecheck: there is no bill of materials of the guest kit for %s\n", arch)
		return nil
	}
	agent := filepath.Join(r.kits, ".cache", arch, "firkin-agent")
	manifest, err := kit.ReadManifest(filepath.Join(r.kits, arch))
	if err != nil {
		return err
	}
	sum, err := digest(agent)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(sum, manifest.AgentVersion) {
		return fmt.Errorf("its agent is %s, and %s is %.12s: make guest", manifest.AgentVersion, agent, sum)
	}
	return checkBill(bill, r.version, agent)
}
