// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// scopeOptions say whose service it is.
type scopeOptions struct {
	system bool
	runAs  string
}

func (o *scopeOptions) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.system, "system", false, "a service of the host, from its start, instead of one of this user; needs root")
	flags.StringVar(&o.runAs, "run-as", os.Getenv("SUDO_USER"), "with --system: user that the node runs as (SUDO_USER)")
}

// person is what is known of a user.
type person struct {
	name, home string
	uid        int
}

func thisPerson() (person, error) { return personOf(user.Current()) }

func personOf(u *user.User, err error) (person, error) {
	if err != nil {
		return person{}, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return person{}, fmt.Errorf("number of user %q: %w", u.Username, err)
	}
	return person{name: u.Username, home: u.HomeDir, uid: uid}, nil
}

// target is where the service belongs. Pure, but for lookup.
func (o scopeOptions) target(goos string, me person, lookup func(name string) (person, error)) (service.Target, error) {
	t := service.Target{Manager: service.ManagerOf(goos), System: o.system, User: me.name, UID: me.uid, Home: me.home}
	switch {
	case !o.system && me.uid == 0:
		return t, errors.New("a node needs no root: run this as the user that the node runs as, or let it run from the host's start by --system --run-as USER")
	case !o.system:
		return t, nil
	case me.uid != 0:
		return t, errors.New("--system needs root: run it by sudo, or leave it out to install a service of this user")
	case o.runAs == "":
		return t, errors.New("--system wants to know which user the node runs as: add --run-as USER")
	}
	who, err := lookup(o.runAs)
	if err != nil {
		return t, fmt.Errorf("--run-as %q: %w", o.runAs, err)
	}
	t.User, t.UID, t.Home = who.name, who.uid, who.home
	return t, nil
}

// crashFile is where launchd puts what a node says that cannot log, and logFile its log.
func crashFile(t service.Target) string { return filepath.Join(t.Home, ".firkin/log/crash.log") }
func logFile(t service.Target) string   { return filepath.Join(t.Home, ".firkin/log/node.log") }

// installedService is the service of this host that is this user's to look at, if there is one.
func installedService() (service.Target, bool) {
	me, err := thisPerson()
	if err != nil {
		return service.Target{}, false
	}
	for _, system := range []bool{false, true} {
		t := service.Target{Manager: service.ManagerOf(runtime.GOOS), System: system, User: me.name, UID: me.uid, Home: me.home}
		if _, err := os.Stat(t.Path()); t.Manager != "" && err == nil {
			return t, true
		}
	}
	return service.Target{}, false
}

// serviceSpec is what the service of this host runs, as far as this user may read it.
func serviceSpec() (service.Spec, bool) {
	t, ok := installedService()
	if !ok {
		return service.Spec{}, false
	}
	s, err := service.Read(t)
	return s, err == nil
}

type installOptions struct {
	scopeOptions
	program string
	env     map[string]string
	dryRun  bool
	start   bool
	timeout time.Duration
}

func newInstallCommand() *cobra.Command {
	var o installOptions
	var node nodeOptions
	nodeFlags := pflag.NewFlagSet("node", pflag.ContinueOnError)
	node.addFlags(nodeFlags)
	cmd := &cobra.Command{
		Use:   "install [flags of vk-firkin node]",
		Short: "Make this host's node a service, or upgrade the one there is",
		Long: `Makes vk-firkin node a service of this host that runs with the flags given here: a launch
agent on macOS, a unit of this user's systemd on Linux, or with --system a service of the
whole host. It copies this program to where the service keeps its own, starts the service,
and waits until the node answers.

Run it again, with a newer vk-firkin or further flags, to upgrade: flags that are not given
stay as they were, machines and their pods go on, and the new node takes them up.`,
		Example: `  vk-firkin install --kubeconfig node.kubeconfig --guest-kit guest/arm64
  sudo vk-firkin install --system --run-as ci --kubeconfig /home/ci/node.kubeconfig
  vk-firkin install --dry-run --kubeconfig node.kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &node, nodeFlags)
		},
	}
	f := cmd.Flags()
	o.addFlags(f)
	f.StringVar(&o.program, "program", "", "where the service's own copy of this program is kept (default: ~/.firkin/bin/vk-firkin, with --system /usr/local/bin/vk-firkin)")
	f.StringToStringVar(&o.env, "env", nil, "environment of the node, as NAME=VALUE, for example of a proxy")
	f.BoolVar(&o.dryRun, "dry-run", false, "only show the service's definition and what would be done")
	f.BoolVar(&o.start, "start", true, "start the service, or start it anew")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long the node may take to answer; 0 does not wait")
	f.AddFlagSet(nodeFlags)
	return cmd
}

func (o installOptions) run(ctx context.Context, out, warn io.Writer, node *nodeOptions, flags *pflag.FlagSet) error {
	me, err := thisPerson()
	if err != nil {
		return fmt.Errorf("find out who runs this: %w", err)
	}
	t, err := o.target(runtime.GOOS, me, func(name string) (person, error) { return personOf(user.Lookup(name)) })
	if err != nil {
		return err
	}
	spec, settings, err := o.spec(t, node, flags)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return fmt.Errorf("find this program, which is copied for the service: %w", err)
	}
	steps, err := service.Install(t, spec, self, o.start)
	if err != nil {
		return err
	}
	if t.Manager == service.Launchd && t.System {
		fmt.Fprintln(warn, "vk-firkin: macOS gives the key that saved machines are encrypted with to a graphical session: machines of a daemon may not be restored. Without --system it is an agent of the session (docs/macos.md).")
	}
	if o.dryRun {
		for _, s := range steps {
			fmt.Fprintln(out, s)
			if s.Content != nil {
				fmt.Fprintln(out, strings.TrimRight("    "+strings.ReplaceAll(string(s.Content), "\n", "\n    "), " "))
			}
		}
		return nil
	}
	if err := checkInputs(settings); err != nil {
		return err
	}
	if err := freeForService(t, settings.StateDir); err != nil {
		return err
	}
	if o.start {
		if err := handOver(ctx, t); err != nil {
			return err
		}
	}
	if err := service.Do(ctx, steps, func(s service.Step) { fmt.Fprintln(out, s) }); err != nil {
		return err
	}
	if !o.start || o.timeout == 0 {
		return nil
	}
	r, err := waitForNode(ctx, settings.StateDir, o.timeout)
	if err != nil {
		return fmt.Errorf("%w: it says why by: %s", err, t.Logs(logFile(t), crashFile(t)))
	}
	_, err = fmt.Fprintf(out, "Node %s runs as process %d. vk-firkin status shows it, kubectl get node %s whether it is Ready.\n", r.Node.Name, r.Node.PID, r.Node.Name)
	return err
}

// spec is what the service runs, by the node's flags. Nothing depends on where the command
// is run, or on its environment.
func (o installOptions) spec(t service.Target, node *nodeOptions, flags *pflag.FlagSet) (service.Spec, *nodeSettings, error) {
	spec := service.Spec{Env: o.env}
	if o.program != "" {
		var err error
		if spec.Program, err = filepath.Abs(o.program); err != nil {
			return spec, nil, err
		}
	}
	if err := o.keep(t, &spec, flags); err != nil {
		return spec, nil, err
	}
	defaults := map[string]string{}
	if t.System { // the defaults are those of root's home
		for flag, variable := range map[string]string{"state-dir": "FIRKIN_STATE_DIR", "cache-dir": "FIRKIN_CACHE_DIR"} {
			if os.Getenv(variable) == "" {
				defaults[flag] = filepath.Join(t.Home, ".firkin", strings.TrimSuffix(flag, "-dir"))
			}
		}
	}
	if spec.Program == "" {
		spec.Program = t.Program()
	}
	if t.Manager == service.Launchd {
		defaults["log-file"], spec.Stderr = logFile(t), crashFile(t)
	}
	for flag, value := range defaults {
		if !flags.Changed(flag) {
			if err := flags.Set(flag, value); err != nil {
				return spec, nil, err
			}
		}
	}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if pathFlags[f.Name] != "" && f.Value.String() != "" {
			path, err := filepath.Abs(f.Value.String())
			errs = append(errs, err, f.Value.Set(path))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return spec, nil, err
	}
	node.isService = true
	settings, err := node.complete()
	if err != nil {
		return spec, nil, err
	}
	if spec.Args, err = serviceArguments(flags); err != nil {
		return spec, nil, err
	}
	// What is closed when the node is told to stop has closeTimeout each.
	spec.StopTimeout = 2 * closeTimeout
	if settings.DrainOnShutdown {
		spec.StopTimeout += settings.ShutdownGrace
	}
	return spec, settings, nil
}

// keep takes what was not given this time from the service that is there: an upgrade has
// not to be told it all again.
func (o installOptions) keep(t service.Target, spec *service.Spec, flags *pflag.FlagSet) error {
	before, err := service.Read(t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	spec.StopBefore = before.StopTimeout
	if spec.Program == "" {
		spec.Program = before.Program
	}
	if spec.Env == nil {
		spec.Env = before.Env
	}
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	for _, arg := range before.Args {
		name, value, ok := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !ok || given[name] {
			continue
		}
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("the service that is there runs with %s, which this version does not take: uninstall it first (%w)", arg, err)
		}
	}
	return nil
}

// pinnedFlags have defaults that depend on who runs a command, and where.
var pinnedFlags = []string{"kubeconfig", "state-dir", "cache-dir", "guest-kit", "node-name"}

// serviceArguments are the arguments by which a service runs the node: the flags that were
// given, and those whose defaults would be others there.
func serviceArguments(flags *pflag.FlagSet) ([]string, error) {
	args := []string{"node"}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Changed && !slices.Contains(pinnedFlags, f.Name) || f.Value.String() == "" {
			return
		}
		values := []string{f.Value.String()}
		switch f.Value.Type() {
		case "stringToString":
			pairs, err := flags.GetStringToString(f.Name)
			errs = append(errs, err)
			values = nil
			for k, v := range pairs {
				values = append(values, csvField(k+"="+v))
			}
			slices.Sort(values)
		case "stringSlice":
			list, err := flags.GetStringSlice(f.Name)
			errs = append(errs, err)
			values = nil
			for _, v := range list {
				values = append(values, csvField(v))
			}
		}
		for _, v := range values {
			args = append(args, "--"+f.Name+"="+v)
		}
	})
	return args, errors.Join(errs...)
}

// csvField is how a flag that takes a list reads one value with commas or quotes in it.
func csvField(v string) string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	_ = w.Write([]string{v}) // a builder does not fail
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n")
}

// checkInputs looks for what the node would miss, while somebody reads the answer.
func checkInputs(s *nodeSettings) error {
	var errs []error
	if _, err := kit.Load(s.GuestKit); err != nil {
		errs = append(errs, guestKitError(err))
	}
	for flag, path := range map[string]string{"--kubeconfig": s.Kubeconfig, "--tls-cert-file": s.TLSCert, "--tls-private-key-file": s.TLSKey, "--client-ca-file": s.ClientCA} {
		if _, err := os.Stat(path); path != "" && err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
	}
	return errors.Join(errs...)
}

// freeForService refuses a state directory that a node has which is no service: two would
// fight for it.
func freeForService(t service.Target, stateDir string) error {
	if _, err := os.Stat(t.Path()); err == nil {
		return nil // its own node has it, and is started anew
	}
	lock, err := durable.LockDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return refusalOfLock(err)
	}
	return lock.Close()
}

// waitForNode waits until a node answers.
func waitForNode(ctx context.Context, stateDir string, timeout time.Duration) (status.Report, error) {
	wctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		var r status.Report
		err := ask(wctx, stateDir, usual, http.MethodGet, controlStatus, nil, &r)
		if err == nil && r.Node != nil {
			return r, nil
		}
		select {
		case <-wctx.Done():
			if ctx.Err() != nil {
				return r, ctx.Err()
			}
			return r, fmt.Errorf("the service was started, and no node answers after %s (%w)", timeout, err)
		case <-ticker.C:
		}
	}
}
