// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Conformance runs Kubernetes' own specs of a node, [sig-node], on a vk-firkin node: it starts
// the embedded control plane, a node and a registry on loopback with stand-ins for the test
// images, runs the test binary of the same release, and tells what passed, what failed and
// why the rest was not run. `make conformance-sig-node` builds all it needs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// paths are what the tool runs, and where it writes.
type paths struct {
	controlPlane, firkin, kits string
	// programs has e2e.test, ginkgo and the programs of the test images (e2e/build.sh).
	programs, exclusions, out string
}

// options are the flags.
type options struct {
	paths
	sig, tag       string
	focus, include string
	nodeArgs       string
	procs          int
	timeout        time.Duration
	list           bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.focus, "focus", os.Getenv("FOCUS"), "run only the specs whose names match this `regexp` (FOCUS)")
	f.StringVar(&o.sig, "sig", "sig-node", "of the specs of this `group`: sig-storage has those of volumes")
	f.StringVar(&o.tag, "tag", defaultTag, "of the specs with this `tag`, empty for all")
	f.StringVar(&o.include, "include", "", "also run specs with these `tags`, separated by commas: "+strings.Join(heavy, ", "))
	f.IntVar(&o.procs, "procs", 2, "how many specs run at a time")
	f.DurationVar(&o.timeout, "timeout", 2*time.Hour, "end the run after this time: specs that it did not get to have failed")
	f.BoolVar(&o.list, "list", false, "print which specs would run, and why others would not, and end")
	f.StringVar(&o.nodeArgs, "node-args", "", "further `flags` for vk-firkin node, separated by spaces")
	f.StringVar(&o.out, "out", ".work/conformance", "`folder` for results.json, the logs and ginkgo's report")
	f.StringVar(&o.controlPlane, "controlplane", "hack/controlplane/bin/controlplane", "the embedded control plane's `file`")
	f.StringVar(&o.firkin, "vk-firkin", "bin/vk-firkin", "the product's `file`")
	f.StringVar(&o.kits, "guest-kits", "bin/guest", "`folder` of the guest kits")
	f.StringVar(&o.programs, "programs", "hack/conformance/e2e/bin", "`folder` of what e2e/build.sh built")
	f.StringVar(&o.exclusions, "exclusions", "hack/conformance/exclusions.yaml", "`file` of the specs that are not run")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case f.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.procs < 1 || o.timeout <= 0:
		return options{}, errors.New("--procs and --timeout want to be positive")
	}
	// The test binary is run in a folder of its own.
	for _, p := range []*string{&o.out, &o.controlPlane, &o.firkin, &o.kits, &o.programs, &o.exclusions} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return options{}, err
		}
		*p = abs
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(o.exclusions)
	if err != nil {
		return err
	}
	exclusions, err := parseExclusions(content)
	if err != nil {
		return err
	}
	choice, err := newSelection(o.sig, o.tag, o.focus, o.include, exclusions)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	all, err := o.allSpecs(ctx)
	if err != nil {
		return err
	}
	if err := stale(exclusions, all); err != nil {
		return err
	}
	chosen, skipped := choice.choose(all)
	if o.list {
		for _, s := range chosen {
			skipped = append(skipped, result{Name: s.Name, State: "chosen"})
		}
		return json.NewEncoder(stdout).Encode(skipped)
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no spec to run is among %s", choice)
	}
	release, err := o.release(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	results, err := o.execute(ctx, chosen, stderr)
	if err != nil && results == nil {
		return err
	}
	s := summarize(release, choice.String(), time.Since(began), append(results, skipped...))
	if werr := errors.Join(o.write(s), s.print(stdout)); werr != nil {
		return errors.Join(err, werr)
	}
	if s.Failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d specs failed; see %s", s.Failed, len(chosen), o.out))
	}
	return err
}

// write writes the machine-readable outcome.
func (o options) write(s summary) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, "results.json"), append(b, '\n'), 0o644)
}

// release is the release of the control plane.
func (o options) release(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, o.controlPlane, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", o.controlPlane, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// allSpecs asks the test binary for its specs, without a cluster.
func (o options) allSpecs(ctx context.Context) ([]spec, error) {
	file := filepath.Join(o.out, "specs.json")
	cmd := exec.CommandContext(ctx, filepath.Join(o.programs, "e2e.test"), "--ginkgo.dry-run", "--ginkgo.silence-skips", "--ginkgo.no-color",
		"--ginkgo.json-report="+file, "--provider=skeleton")
	cmd.Dir = o.out
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("list the specs: %w: %s", err, tail(out))
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	report, err := parseReport(content)
	if err != nil {
		return nil, err
	}
	return report.specs(), nil
}

// execute runs the specs on a stage of its own. Results that there are come with the error.
func (o options) execute(ctx context.Context, chosen []spec, progress io.Writer) ([]result, error) {
	say := func(format string, args ...any) { fmt.Fprintf(progress, "conformance: "+format+"\n", args...) }
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	repositoryFile := filepath.Join(o.out, "registries.yaml")
	if err := os.WriteFile(repositoryFile, repositoryList(registry.Addr()), 0o644); err != nil {
		return nil, err
	}
	environment := append(os.Environ(), "KUBE_TEST_REPO_LIST="+repositoryFile)
	served, err := o.serveImages(ctx, registry, environment, say)
	if err != nil {
		return nil, err
	}
	say("starting a control plane and a node")
	s, err := startStage(ctx, o.paths, registry.Addr(), strings.Fields(o.nodeArgs))
	if err != nil {
		return nil, err
	}
	defer o.keepLogs(s, say)
	defer s.stop()

	if err := s.warmUp(ctx, served); err != nil {
		return nil, fmt.Errorf("run a pod of every image: %w; the logs are in %s", err, o.out)
	}
	say("running %d specs, %d at a time; the log is %s", len(chosen), o.procs, filepath.Join(o.out, "e2e.log"))
	report := filepath.Join(o.out, "report.json")
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ended := o.ginkgo(ctx, environment, s.plane.Kubeconfig, chosen, progress)
	content, err := os.ReadFile(report)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the suite left no report: %w", err), ended)
	}
	parsed, err := parseReport(content)
	if err != nil {
		return nil, err
	}
	return parsed.results(chosen)
}

// serveImages puts the images that the release's specs name into the registry, and returns
// their references.
func (o options) serveImages(ctx context.Context, registry *images.Registry, environment []string, say func(string, ...any)) ([]string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(o.programs, "e2e.test"), "--list-images")
	cmd.Env = environment
	listed, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the images: %w", err)
	}
	makers, err := imageMakers(ctx, o.programs, filepath.Join(o.out, "images"))
	if err != nil {
		return nil, err
	}
	served, missing, err := wanted(string(listed), registry.Addr(), makers)
	if err != nil {
		return nil, err
	}
	say("serving %s", strings.Join(served, " "))
	say("not served: %s", strings.Join(missing, " "))
	if err := serve(registry, served, makers); err != nil {
		return nil, err
	}
	refs := make([]string, 0, len(served))
	for _, s := range served {
		refs = append(refs, registry.Addr()+"/"+s)
	}
	return refs, nil
}

// ginkgo runs the suite. That specs failed is an error, too: the report tells which.
func (o options) ginkgo(ctx context.Context, environment []string, kubeconfig string, chosen []spec, progress io.Writer) error {
	log, err := os.Create(filepath.Join(o.out, "e2e.log"))
	if err != nil {
		return err
	}
	args := []string{
		"run", "--no-color", "-v", "--silence-skips", "--procs", strconv.Itoa(o.procs), "--timeout", o.timeout.String(),
		"--json-report=report.json", "--output-dir", o.out,
	}
	for _, p := range patterns(chosen) {
		args = append(args, "--focus", p)
	}
	args = append(args, filepath.Join(o.programs, "e2e.test"), "--", "--kubeconfig", kubeconfig,
		// A lone node that is no cloud's.
		"--provider=skeleton", "--num-nodes=1", "--minStartupPods=-1", "--allowed-not-ready-nodes=-1", "--node-os-distro=custom",
		"--dump-logs-on-failure", "--disable-log-dump", "--node-schedulable-timeout=30s")
	cmd := exec.CommandContext(ctx, filepath.Join(o.programs, "ginkgo"), args...)
	cmd.Dir, cmd.Env = o.out, environment
	w := &progressWriter{log: log, out: progress}
	cmd.Stdout, cmd.Stderr = w, w
	// It ends the running specs, cleans up after them and writes its report.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	err = cmd.Run()
	return errors.Join(err, log.Close())
}

// keepLogs moves the logs of the stage to the output folder, and removes the rest of it.
func (o options) keepLogs(s *stage, say func(string, ...any)) {
	logs := map[string]string{s.node.LogPath: "node.log", filepath.Join(s.dir, "controlplane.log"): "controlplane.log"}
	for from, to := range logs {
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(o.out, to), content, 0o644)
		}
		if err != nil {
			say("%v; the logs stay in %s", err, s.dir)
			return
		}
	}
	if err := os.RemoveAll(s.dir); err != nil {
		say("%v", err)
	}
}

// tail is the end of what a program said.
func tail(out []byte) string {
	const keep = 2048
	if len(out) > keep {
		out = out[len(out)-keep:]
	}
	return strings.TrimSpace(string(out))
}
