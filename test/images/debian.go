// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// debianRecipe changes when what Debian does to the file system changes, so that
// caches are made anew.
const debianRecipe = "1"

// Debian is a real distribution for the host's architecture: debootstrap's
// minbase of the release and the mirror that this machine's apt is configured for,
// with python3. Its command serves HTTP on port 8080. The first time takes minutes and root (sudo is
// used when it asks for no password), and says what it is doing on progress, if not nil; the
// layer is kept in cache.
func Debian(ctx context.Context, cache string, progress io.Writer) (v1.Image, error) {
	if progress == nil {
		progress = io.Discard
	}
	img, err := debian(ctx, cache, progress)
	if err != nil {
		return nil, fmt.Errorf("make Debian image: %w", err)
	}
	return img, nil
}

func debian(ctx context.Context, cache string, progress io.Writer) (v1.Image, error) {
	src, err := aptSource(ctx)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(cache, fmt.Sprintf("debian-%s-%s-%s.tar.gz", src.suite, runtime.GOARCH, debianRecipe))
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := bootstrap(ctx, src, cache, path, progress); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("read %s (remove it to have it made anew): %w", path, err)
	}
	return Image(runtime.GOARCH, v1.Config{
		Cmd:          []string{"python3", "-u", "-m", "http.server", "8080"},
		Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		WorkingDir:   "/srv",
		StopSignal:   "SIGINT", // python's server ends on KeyboardInterrupt
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
	}, l)
}

// source is a package source of apt.
type source struct{ uri, suite, keyring, proxy string }

// aptSource asks apt for the mirror of this machine's own release.
func aptSource(ctx context.Context) (source, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return source{}, fmt.Errorf("find out the release: %w", err)
	}
	want := osReleaseField(release, "VERSION_CODENAME")
	targets, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(SIGNED_BY)", "Created-By: Packages").Output()
	if err != nil {
		return source{}, fmt.Errorf("ask apt for its sources: %w", err)
	}
	s, err := chooseSource(targets, want)
	if err != nil {
		return source{}, err
	}
	if out, err := exec.CommandContext(ctx, "apt-config", "shell", "p", "Acquire::http::Proxy").Output(); err == nil {
		s.proxy = strings.Trim(strings.TrimPrefix(strings.TrimSpace(string(out)), "p="), "'")
	}
	return s, nil
}

// chooseSource picks the source whose release is the machine's and that has the
// component main.
func chooseSource(targets []byte, codename string) (source, error) {
	sc := bufio.NewScanner(bytes.NewReader(targets))
	for sc.Scan() {
		f := strings.Split(sc.Text(), "\t")
		if len(f) == 4 && f[1] == codename && codename != "" && f[2] == "main" {
			return source{uri: strings.TrimSuffix(f[0], "/"), suite: f[1], keyring: f[3]}, nil
		}
	}
	return source{}, fmt.Errorf("apt has no source for %q main; add one and run apt-get update", codename)
}

func osReleaseField(b []byte, key string) string {
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+"="); ok {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

// bootstrap makes the layer and puts it at path when it is complete.
func bootstrap(ctx context.Context, src source, cache, path string, progress io.Writer) error {
	debootstrap := ""
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin") {
		if p := filepath.Join(dir, "debootstrap"); isExecutable(p) {
			debootstrap = p
			break
		}
	}
	if debootstrap == "" {
		return errors.New("debootstrap is missing: install the Debian package debootstrap")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, ".debian-*")
	if err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	defer func() {
		// Its files belong to root. Not the caller's context: this must happen.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_ = asRoot(clean, nil, "rm", "-rf", "--one-file-system", tmp).Run()
	}()

	started := time.Now()
	say := func(format string, args ...any) {
		_, _ = fmt.Fprintf(progress, "[%3.0fs] debian: %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
	}
	say("bootstrapping %s with python3, once; this takes a few minutes", src.suite)
	args := []string{"--variant=minbase", "--include=python3,iproute2,procps", "--merged-usr"}
	if strings.HasPrefix(src.keyring, "/") {
		args = append(args, "--keyring="+src.keyring)
	}
	args = append(args, src.suite, root, src.uri)
	var env []string
	if src.proxy != "" {
		env = append(env, "http_proxy="+src.proxy)
	}
	if err := follow(asRoot(ctx, env, debootstrap, args...), say); err != nil {
		return fmt.Errorf("debootstrap: %w", err)
	}
	say("packing")
	f, err := os.CreateTemp(cache, ".debian-*.tar.gz")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	err = pack(ctx, root, f)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if st, err := os.Stat(path); err == nil {
		say("done, %d MiB compressed", st.Size()>>20)
	}
	return nil
}

// pack archives root without what a container has no use for.
func pack(ctx context.Context, root string, w io.Writer) error {
	z := gzip.NewWriter(w)
	cmd := asRoot(ctx, nil, "tar", "--numeric-owner", "--format=pax", "--xattrs", "--xattrs-include=*", "--sort=name", "--one-file-system",
		"--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*_*", "--exclude=./var/log/*.log", "--exclude=./var/log/apt/*",
		"--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*", "--exclude=./etc/machine-id", "--exclude=./etc/hostname", "--exclude=./etc/resolv.conf",
		"--exclude=./var/cache/debconf/*-old", "--exclude=./var/lib/dpkg/*-old", "--exclude=./debootstrap",
		"-C", root, "-c", ".")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = z, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, lastLines(said.Bytes()))
	}
	return z.Close()
}

// follow runs a long command and says every few seconds which line it is at.
func follow(cmd *exec.Cmd, say func(string, ...any)) error {
	const every = 5 * time.Second
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var tail bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		last := time.Time{}
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			tail.WriteString(sc.Text() + "\n")
			if tail.Len() > 1<<16 {
				tail.Next(tail.Len() - 1<<15)
			}
			if time.Since(last) >= every {
				last = time.Now()
				say("%s", strings.TrimPrefix(sc.Text(), "I: "))
			}
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	err := cmd.Run()
	_ = w.Close()
	<-read
	if err != nil {
		return fmt.Errorf("%w: %s", err, lastLines(tail.Bytes()))
	}
	return nil
}

// asRoot is a command with root's rights, without ever asking for a password.
func asRoot(ctx context.Context, env []string, name string, args ...string) *exec.Cmd {
	if os.Geteuid() != 0 {
		args = append(append([]string{"-n", "env"}, env...), append([]string{name}, args...)...)
		name = "sudo"
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func isExecutable(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
