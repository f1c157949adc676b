// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
)

func TestServiceTarget(t *testing.T) {
	ci, root := person{name: "ci", home: "/home/ci", uid: 1000}, person{name: "root", home: "/root"}
	lookup := func(name string) (person, error) {
		if name == "ci" {
			return ci, nil
		}
		return person{}, errors.New("unknown user")
	}
	own := service.Target{Manager: service.Systemd, User: "ci", UID: 1000, Home: "/home/ci"}
	host := own
	host.System = true
	mac := own
	mac.Manager = service.Launchd
	for name, c := range map[string]struct {
		o    scopeOptions
		goos string
		me   person
		want service.Target
		err  string
	}{
		"a user's":                {scopeOptions{}, "linux", ci, own, ""},
		"a Mac's":                 {scopeOptions{runAs: "ci"}, "darwin", ci, mac, ""},
		"the host's":              {scopeOptions{system: true, runAs: "ci"}, "linux", root, host, ""},
		"root without a reason":   {scopeOptions{}, "linux", root, service.Target{}, "needs no root"},
		"the host's, not by root": {scopeOptions{system: true, runAs: "ci"}, "linux", ci, service.Target{}, "sudo"},
		"the host's, as nobody":   {scopeOptions{system: true}, "linux", root, service.Target{}, "--run-as USER"},
		"as somebody unknown":     {scopeOptions{system: true, runAs: "eve"}, "linux", root, service.Target{}, `"eve": unknown user`},
	} {
		got, err := c.o.target(c.goos, c.me, lookup)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// specFor is what install would run for a command line.
func specFor(t *testing.T, target service.Target, o installOptions, args ...string) (service.Spec, error) {
	t.Helper()
	var node nodeOptions
	flags := pflag.NewFlagSet("node", pflag.ContinueOnError)
	node.addFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	spec, _, err := o.spec(target, &node, flags)
	return spec, err
}

// What a service runs depends neither on where install was run nor on its environment, and
// reads as the flags that were given.
func TestServiceArguments(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", "admin.kubeconfig")
	t.Setenv("FIRKIN_CACHE_DIR", "cache")
	t.Chdir(home)
	target := service.Target{Manager: service.Systemd, User: "ci", UID: os.Getuid(), Home: home}
	args := []string{"--kubeconfig", "node.kubeconfig", "--node-name", "mac", "--tls-cert-file", "c", "--tls-private-key-file", "k", "--client-ca-file", "/etc/ca",
		"--shapes", "1x256Mi,2x1Gi", "--node-labels", "team=a,b=c", "--no-taint", "--drain-on-shutdown", "--shutdown-grace-period", "2m"}
	spec, err := specFor(t, target, installOptions{}, args...)
	if err != nil {
		t.Fatal(err)
	}
	want := service.Spec{
		Program: filepath.Join(home, ".firkin/bin/vk-firkin"), StopTimeout: 2*closeTimeout + 2*time.Minute,
		Args: []string{
			"node", "--cache-dir=" + home + "/cache", "--client-ca-file=/etc/ca", "--drain-on-shutdown=true", "--guest-kit=" + home + "/bin/guest/" + goarch(),
			"--kubeconfig=" + home + "/node.kubeconfig", "--no-taint=true", "--node-labels=b=c", "--node-labels=team=a", "--node-name=mac",
			"--shapes=1x256Mi", "--shapes=2x1Gi", "--shutdown-grace-period=2m0s", "--state-dir=" + home + "/.firkin/state",
			"--tls-cert-file=" + home + "/c", "--tls-private-key-file=" + home + "/k",
		},
	}
	if diff := cmp.Diff(want, spec); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The node understands them as they were meant.
	var given, meant nodeOptions
	for o, list := range map[*nodeOptions][]string{&given: args, &meant: spec.Args[1:]} {
		flags := pflag.NewFlagSet("node", pflag.ContinueOnError)
		o.addFlags(flags)
		if err := flags.Parse(list); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(given.Shapes, meant.Shapes) || !cmp.Equal(given.NodeLabels, meant.NodeLabels) || given.ShutdownGrace != meant.ShutdownGrace {
		t.Errorf("%+v, want %+v", meant, given)
	}
	// The next install keeps what it is not told, and what it is told goes before.
	steps, err := service.Install(target, spec, "/self", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if s.Content == nil {
			continue
		}
		if err := service.Do(t.Context(), []service.Step{s}, func(service.Step) {}); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBECONFIG", "")
	t.Chdir(t.TempDir())
	again, err := specFor(t, target, installOptions{env: map[string]string{"A": "b"}}, "--shapes", "4x4Gi")
	if err != nil {
		t.Fatal(err)
	}
	want.Env, want.StopBefore = map[string]string{"A": "b"}, want.StopTimeout
	want.Args = slices.DeleteFunc(slices.Clone(want.Args), func(a string) bool { return a == "--shapes=2x1Gi" })
	want.Args[slices.Index(want.Args, "--shapes=1x256Mi")] = "--shapes=4x4Gi"
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("again (-want +got):\n%s", diff)
	}
	// Other commands look where the service has its state.
	t.Setenv("FIRKIN_CACHE_DIR", "")
	if os.Getuid() == 0 { // HOME does not say who root is
		return
	}
	if got := defaultDirectory("FIRKIN_CACHE_DIR", "cache"); got != home+"/cache" {
		t.Errorf("the cache is looked for in %s", got)
	}
}

func goarch() string { return filepath.Base(defaultGuestKit()) }

// On a Mac the node logs to a file, and the service of the host has the user's folders.
func TestServiceOfAMac(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("FIRKIN_STATE_DIR", "")
	t.Setenv("FIRKIN_CACHE_DIR", "")
	target := service.Target{Manager: service.Launchd, System: true, User: "ci", UID: 501, Home: "/Users/ci"}
	spec, err := specFor(t, target, installOptions{program: "/opt/vk-firkin"}, complete[:10]...)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Program != "/opt/vk-firkin" || spec.Stderr != "/Users/ci/.firkin/log/crash.log" || spec.Argument("log-file") != "/Users/ci/.firkin/log/node.log" ||
		spec.Argument("state-dir") != "/Users/ci/.firkin/state" || spec.Argument("cache-dir") != "/Users/ci/.firkin/cache" {
		t.Errorf("%+v", spec)
	}
	for _, kubeconfig := range []string{"", "/admin.kubeconfig"} {
		t.Setenv("KUBECONFIG", kubeconfig)
		if _, err := specFor(t, target, installOptions{}); err == nil || !strings.Contains(err.Error(), "vk-firkin join") || !strings.Contains(err.Error(), kubeconfig) {
			t.Errorf("without an identity, with KUBECONFIG=%s: %v", kubeconfig, err)
		}
	}
}

// --dry-run shows the definition and does nothing.
func TestInstallDryRun(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	out, err := runRoot(t, append([]string{"install", "--dry-run", "--system", "--run-as", "root"}, complete...)...)
	if os.Getuid() != 0 {
		if err == nil || !strings.Contains(err.Error(), "sudo") {
			t.Errorf("%v", err)
		}
		return
	}
	if err != nil || !strings.Contains(out, "KillMode=process") && !strings.Contains(out, "AbandonProcessGroup") || !strings.Contains(out, "write ") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// What the node would miss is said before anything is done.
func TestInstallLooksFirst(t *testing.T) {
	dir := t.TempDir()
	s := &nodeSettings{nodeOptions: nodeOptions{GuestKit: dir, Kubeconfig: filepath.Join(dir, "none")}}
	err := checkInputs(s)
	if err == nil || !strings.Contains(err.Error(), "make guest") || !strings.Contains(err.Error(), "--kubeconfig") || strings.Contains(err.Error(), "--tls") {
		t.Errorf("%v", err)
	}
}
