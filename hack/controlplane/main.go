// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command controlplane is a whole Kubernetes control plane in one binary. Its base name, or its first
// argument, selects the program: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl,
// or the commands of our own that start them together. See README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // for the time zones of CronJobs

	"github.com/vk-firkin/vk-firkin/hack/controlplane/cluster"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // for kubectl's auth providers
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // for --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // for the client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // for the version metric
	"k8s.io/component-base/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

const usage = `A Kubernetes control plane in one binary.

  controlplane up --dir DIR [--port 0] [--timeout 2m] [--exit-with-parent] [--v]
      Start it on loopback, print one line of JSON when it is ready, run until SIGTERM or SIGINT.
  controlplane node-credentials --dir DIR --name NODE [--ip 127.0.0.1[,IP]] --out OUT
      Write kubeconfig, kubelet.crt, kubelet.key and client-ca.crt for a node.
  controlplane kubectl ARGUMENTS
      Run kubectl; so do etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
  controlplane version
      Print the version of Kubernetes.
`

func main() {
	if runProgram(filepath.Base(os.Args[0])) {
		return
	}
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	name, args := os.Args[1], os.Args[2:]
	var err error
	switch name {
	case "up":
		err = up(args)
	case "node-credentials":
		err = nodeCredentials(args)
	case "version":
		fmt.Println(version.Get().GitVersion)
	case "help", "-h", "--help":
		fmt.Print(usage)
	default:
		os.Args = os.Args[1:] // the programs read it themselves
		if !runProgram(name) {
			fmt.Fprint(os.Stderr, usage)
			os.Exit(2)
		}
	}
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2) // the flag set has said why
	case err != nil:
		fmt.Fprintf(os.Stderr, "controlplane %s: %v\n", name, err)
		os.Exit(1)
	}
}

// runProgram runs one of the programs of Kubernetes on os.Args; false if it knows none of that name.
func runProgram(name string) bool {
	switch name {
	case cluster.Etcd:
		cluster.FollowLifeline()
		etcdmain.Main(os.Args)
	case cluster.APIServer:
		cluster.FollowLifeline()
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case cluster.ControllerManager:
		cluster.FollowLifeline()
		os.Exit(cli.Run(controllermanager.NewControllerManagerCommand()))
	case cluster.Scheduler:
		cluster.FollowLifeline()
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case cluster.Kubectl:
		// kubectl logs before it parses its flags.
		_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		return false
	}
	return true
}

// errUsage means that the command line was wrong and the flag set has already said so.
var errUsage = errors.New("usage")

// parse parses flags that need no arguments beside them; the named ones must be given.
func parse(f *flag.FlagSet, args []string, required ...string) error {
	if err := f.Parse(args); err != nil {
		return errUsage
	}
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	for _, name := range required {
		if !given[name] {
			fmt.Fprintf(os.Stderr, "controlplane %s: --%s is required\n", f.Name(), name)
			f.Usage()
			return errUsage
		}
	}
	if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "controlplane %s: unexpected argument %q\n", f.Name(), f.Arg(0))
		return errUsage
	}
	return nil
}

func up(args []string) error {
	f := flag.NewFlagSet("up", flag.ContinueOnError)
	dir := f.String("dir", "", "`directory` of the control plane; created, or reused with its data")
	port := f.Int("port", 0, "`port` of the API server on 127.0.0.1; 0: the one used last, or a free one")
	timeout := f.Duration("timeout", 2*time.Minute, "how long it may take to become ready")
	withParent := f.Bool("exit-with-parent", false, "stop when standard input ends")
	verbose := f.Bool("v", false, "show each step on standard error")
	if err := parse(f, args, "dir"); err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelDebug
	}

	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() { // lives as long as the process
		stop(fmt.Errorf("stopped by signal (%s) before it was ready", <-signals))
		<-signals
		os.Exit(1) // asked twice: the children follow by themselves
	}()
	if *withParent {
		go func() { // lives as long as the process
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop(errors.New("stopped by the end of standard input before it was ready"))
		}()
	}
	return cluster.Up(ctx, cluster.Options{
		Dir: *dir, Port: *port, Executable: executable, Timeout: *timeout,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}, func(r cluster.Ready) error {
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return fmt.Errorf("report readiness: %w", err)
		}
		return nil
	})
}

func nodeCredentials(args []string) error {
	f := flag.NewFlagSet("node-credentials", flag.ContinueOnError)
	dir := f.String("dir", "", "`directory` of the control plane")
	name := f.String("name", "", "`name` of the node")
	addresses := f.String("ip", "127.0.0.1", "`addresses` at which the API server finds the node, separated by commas")
	out := f.String("out", "", "`folder` for the credentials")
	if err := parse(f, args, "dir", "name", "out"); err != nil {
		return err
	}
	var ips []net.IP
	for _, s := range strings.Split(*addresses, ",") {
		ip := net.ParseIP(s)
		if ip == nil {
			return fmt.Errorf("--ip: %q is not an IP address", s)
		}
		ips = append(ips, ip)
	}
	return cluster.WriteNodeCredentials(cluster.NodeCredentials{Dir: *dir, Name: *name, IPs: ips, Out: *out})
}
