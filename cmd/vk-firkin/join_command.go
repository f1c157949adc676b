// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/vk-firkin/vk-firkin/provider/identity"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

func newJoinCommand() *cobra.Command {
	var o joinOptions
	cmd := &cobra.Command{
		Use:   "join [SERVER]",
		Short: "Get this host the credentials of a node of a cluster",
		Long: `Gets this host the credentials of a node, with a token that the cluster's administrator
gives: it finds the cluster, checks that it is the right one, asks for a certificate as
system:node:NAME, waits until that is approved, and keeps it in the state folder. The
node renews it by itself from then on; the token is not needed again.

The arguments are those of kubeadm join. The chart prints the whole command. With --then
it goes on: with vk-firkin node here, or with vk-firkin install. Flags of that one come
after "--".`,
		Example: `  vk-firkin join https://192.0.2.1:6443 --token abcdef.0123456789abcdef \
      --discovery-token-ca-cert-hash sha256:1234...
  vk-firkin join https://192.0.2.1:6443 --token-file - --then install \
      --discovery-token-ca-cert-hash sha256:1234... -- --guest-kit guest/arm64
  vk-firkin join --bootstrap-kubeconfig bootstrap.kubeconfig --node-name mac-1`,
		Args: func(cmd *cobra.Command, args []string) error {
			own, rest := ownArguments(cmd, args)
			return errors.Join(cobra.MaximumNArgs(1)(cmd, own), checkThen(o.Then, rest))
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			own, rest := ownArguments(cmd, args)
			if err := o.complete(own, cmd.InOrStdin()); err != nil {
				return err
			}
			if err := o.run(cmd.Context(), cmd.OutOrStdout()); err != nil || o.Then == "" {
				return err
			}
			return o.goOn(cmd, rest)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// joinOptions are the flags of `vk-firkin join`.
type joinOptions struct {
	directories

	Server    string
	Token     string
	TokenFile string
	CAHashes  []string
	SkipCA    bool
	Bootstrap string
	NodeName  string
	Timeout   time.Duration
	Replace   bool
	Then      string

	discovery identity.Discovery
}

func (o *joinOptions) addFlags(flags *pflag.FlagSet) {
	o.directories.addFlags(flags)
	flags.StringVar(&o.Server, "server", "", "URL of the API server, as this host reaches it")
	flags.StringVar(&o.Token, "token", "", "bootstrap token; other users of this host can see it while the command runs, unlike --token-file")
	flags.StringVar(&o.TokenFile, "token-file", "", "file with the token; - for standard input")
	flags.StringSliceVar(&o.CAHashes, "discovery-token-ca-cert-hash", nil, "hash of the public key, or of the certificate, of the cluster's authority, as sha256:HEX")
	flags.BoolVar(&o.SkipCA, "discovery-token-unsafe-skip-ca-verification", false, "believe whoever answers for the server and has the token: only in networks that you trust")
	flags.StringVar(&o.Bootstrap, "bootstrap-kubeconfig", "", "kubeconfig whose user may ask for a certificate, instead of a server and a token")
	flags.StringVar(&o.NodeName, "node-name", hostName(), "name of the node to be")
	flags.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "how long to wait until the request is approved")
	flags.BoolVar(&o.Replace, "replace", false, "join although this host has good credentials already, and replace them")
	flags.StringVar(&o.Then, "then", "", "what to go on with: node runs the node here, install makes it a service")
}

// maxTokenFile bounds what is read for a token of 23 characters.
const maxTokenFile = 4 << 10

// complete checks every option and reports all faults at once.
func (o *joinOptions) complete(args []string, stdin io.Reader) error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	note(o.directories.validate())
	if problems := validation.IsDNS1123Subdomain(o.NodeName); len(problems) > 0 {
		fault("--node-name %q: %s", o.NodeName, strings.Join(problems, ", "))
	}
	if o.Timeout < time.Second || o.Timeout > 24*time.Hour {
		fault("--timeout %s: want 1s to 24h", o.Timeout)
	}
	if o.Bootstrap != "" {
		if len(args) > 0 || o.Server != "" || o.Token != "" || o.TokenFile != "" || len(o.CAHashes) > 0 || o.SkipCA {
			fault("--bootstrap-kubeconfig has the server, its authority and a user: leave the other ones out")
		}
		return errors.Join(errs...)
	}
	server := o.Server
	if len(args) > 0 {
		if server != "" {
			fault("want the API server once: --server %s or %s", server, args[0])
		}
		server = args[0] // as kubeadm takes it
	}
	if server == "" {
		fault("the API server is missing: want vk-firkin join https://HOST:PORT --token TOKEN --discovery-token-ca-cert-hash HASH, or --bootstrap-kubeconfig FILE")
	} else {
		if o.discovery.Server = server; !strings.Contains(server, "://") {
			o.discovery.Server = "https://" + server
		}
		note(identity.CheckServer(o.discovery.Server))
	}
	note(o.readToken(stdin))
	for _, text := range o.CAHashes {
		sum, err := identity.ParseCAHash(text)
		if err != nil {
			fault("--discovery-token-ca-cert-hash: %w", err)
		}
		o.discovery.CAHashes = append(o.discovery.CAHashes, sum)
	}
	switch {
	case len(o.CAHashes) == 0 && !o.SkipCA:
		fault("--discovery-token-ca-cert-hash is missing: the cluster's administrator has it, and it is what proves that the server is the cluster's")
	case len(o.CAHashes) > 0 && o.SkipCA:
		fault("--discovery-token-ca-cert-hash and --discovery-token-unsafe-skip-ca-verification: want one of them")
	}
	return errors.Join(errs...)
}

// readToken takes the token from where it is.
func (o *joinOptions) readToken(stdin io.Reader) (err error) {
	text := o.Token
	switch {
	case (o.Token == "") == (o.TokenFile == ""):
		return errors.New("want one of --token and --token-file")
	case o.TokenFile == "-":
		data, err := io.ReadAll(io.LimitReader(stdin, maxTokenFile))
		if err != nil {
			return fmt.Errorf("read token from standard input: %w", err)
		}
		text = string(data)
	case o.TokenFile != "":
		file, err := os.Open(o.TokenFile)
		if err != nil {
			return fmt.Errorf("read token: %w", err)
		}
		defer file.Close()
		data, err := io.ReadAll(io.LimitReader(file, maxTokenFile))
		if err != nil {
			return fmt.Errorf("read token: %w", err)
		}
		text = string(data)
	}
	o.discovery.Token, err = identity.ParseToken(text)
	return err
}

// run joins and says what it does.
func (o *joinOptions) run(ctx context.Context, out io.Writer) error {
	// What client-go tries again by itself is nothing to look at; what is left comes back as an error.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return err
	}
	lock, busy := durable.LockDir(o.StateDir)
	if busy == nil {
		defer lock.Close()
	}
	dir := credentialsDir(o.StateDir)
	if own, err := identity.Open(dir, identity.Options{}); err == nil && !o.Replace {
		return o.joinedAlready(own, out)
	}
	if busy != nil {
		return fmt.Errorf("a node that runs keeps its credentials: %w", refusalOfLock(busy))
	}
	config, err := o.bootstrapConfig(ctx, out)
	if err != nil {
		return err
	}
	if err := identity.Join(ctx, identity.JoinOptions{
		Dir: dir, NodeName: o.NodeName, Bootstrap: config, Timeout: o.Timeout,
		Waiting: func(request string) {
			fmt.Fprintf(out, "Asked for a certificate as system:node:%s: request %s waits for its approval, for %s at most.\n", o.NodeName, request, o.Timeout)
		},
	}); err != nil {
		return err
	}
	own, err := identity.Open(dir, identity.Options{})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Joined as node %s. Its credentials are in %s, good until %s, and renewed by the node itself.\n", own.NodeName, dir, own.Expires().Format(time.RFC3339))
	if o.Then != "" {
		return nil
	}
	fmt.Fprintf(out, "\nNext:\n  vk-firkin node          run the node here, until it is told to stop\n  kubectl get node %s     see it from the cluster\n", own.NodeName)
	return nil
}

// joinedAlready is what a join is that is repeated, since what it was to go on with did not go well: no error.
// One that wants to be another node, or to go on with nothing, is one.
func (o *joinOptions) joinedAlready(own *identity.Identity, out io.Writer) error {
	has := fmt.Sprintf("has joined %s as node %s, with credentials that are good until %s and are renewed when the node runs", own.Config().Host, own.NodeName, own.Expires().Format(time.RFC3339))
	next := "node"
	if o.Then != "" {
		next = o.Then
		server, err := o.server()
		if err != nil {
			return err
		}
		if server == own.Config().Host && o.NodeName == own.NodeName {
			_, err := fmt.Fprintf(out, "This host %s: going on with vk-firkin %s.\n", has, next)
			return err
		}
	}
	return fmt.Errorf("this host %s: run `vk-firkin %s`, or give --replace to join anew", has, next)
}

// server is the API server that is to be joined.
func (o *joinOptions) server() (string, error) {
	if o.Bootstrap == "" {
		return strings.TrimSuffix(o.discovery.Server, "/"), nil // as discovery has it
	}
	config, err := identity.ReadBootstrapKubeconfig(o.Bootstrap)
	if err != nil {
		return "", err
	}
	return config.Host, nil
}

// bootstrapConfig is with what right the certificate is asked for.
func (o *joinOptions) bootstrapConfig(ctx context.Context, out io.Writer) (*rest.Config, error) {
	if o.Bootstrap != "" {
		return identity.ReadBootstrapKubeconfig(o.Bootstrap)
	}
	cluster, err := identity.Discover(ctx, o.discovery)
	if err != nil {
		return nil, err
	}
	how := "its authority has the expected hash"
	if o.SkipCA {
		how = "its authority was NOT checked"
	}
	fmt.Fprintf(out, "Found the cluster at %s: its cluster-info is signed with the token, and %s.\n", cluster.Server, how)
	return identity.BootstrapConfig(cluster, o.discovery.Token), nil
}
