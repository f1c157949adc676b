// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command udpecho speaks UDP in the machines of the stories: busybox has no program that does.
//
//	udpecho listen :PORT       answer each datagram with what it says
//	udpecho ask ADDRESS WORD   send a word, print the answer
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "udpecho:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "listen":
		conn, err := net.ListenPacket("udp", args[1])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return err
			}
			if _, err := conn.WriteTo(append([]byte("you said "), buf[:n]...), from); err != nil {
				return err
			}
		}
	case len(args) == 3 && args[0] == "ask":
		conn, err := net.Dial("udp", args[1])
		if err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		for range 20 { // a datagram may be lost
			if _, err := conn.Write([]byte(args[2])); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if n, err := conn.Read(buf); err == nil {
				fmt.Println(string(buf[:n]))
				return nil
			}
		}
		return fmt.Errorf("no answer from %s", args[1])
	}
	return fmt.Errorf("want listen :PORT, or ask ADDRESS WORD")
}
